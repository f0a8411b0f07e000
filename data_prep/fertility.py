"""How the subwords serve each language: CORPUS/reports/subwords.{json,md,png}."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_prep.counting import Figures, SplitCounts, read_counts, symbols_of, total
from moe_nmt.data import MAIN, Corpus, is_english
from moe_nmt.data.text import write_text
from moe_nmt.evaluation.layout import Table, as_columns, as_markdown
from moe_nmt.evaluation.plots import grid, save, tidy

STARVED = 1.5
"""A language is starved whose text takes this many times the pieces that the median language's takes."""
NOTE = f"""
All text that was encoded, training data of every kind and held-out data. **same text**: pieces of the held-out
sentences over those of their English translations; a language is marked (\\*) where this is {STARVED} times the median
or more. **unknown**, **bytes**, **single**: share of the pieces that are `<unk>`, bytes, or one character. **uses**:
share of the vocabulary that occurs in the language.
"""


@dataclass(frozen=True)
class Fertility:
    """How the subwords serve a language. `premium`: pieces of held-out text over its English side; NaN if unknown."""

    figures: Figures
    premium: float

    def share(self, sort: str) -> float:
        """The share of `unknown`, `bytes` or `single` among the pieces."""
        return float(getattr(self.figures, sort)) / self.figures.pieces

    @property
    def per_word(self) -> float:
        return self.figures.pieces / self.figures.words

    @property
    def per_character(self) -> float:
        return self.figures.pieces / self.figures.characters


def write_fertility(corpora: Mapping[str, Corpus]) -> str:
    """Writes the reports on an encoded corpus and returns its table; CorpusError where it is not encoded."""
    corpus = corpora[MAIN]
    vocabulary = len(symbols_of(corpus.dictionary))
    languages = measure(corpora)
    reports = {ending: corpus.reports / f"subwords.{ending}" for ending in ("json", "md", "png")}
    table = table_of(languages, vocabulary)
    text = json.dumps({"vocabulary": vocabulary, "languages": as_dict(languages)}, indent=1) + "\n"
    drawn = reports["png"].is_file() and reports["json"].is_file() and reports["json"].read_text("utf-8") == text
    if not drawn:
        plot_fertility(languages, reports["png"])
    write_text(reports["json"], text)
    write_text(reports["md"], f"# Subwords\n\n{as_markdown(table)}\n{NOTE}\n![subwords](subwords.png)\n")
    return as_columns(table) + "\n"


def measure(corpora: Mapping[str, Corpus]) -> dict[str, Fertility]:
    """The fertility of each language that has text, the worst served first."""
    counts = [(kind, split, n) for kind, split, n in _all_counts(corpora)]
    held_out = [n.sides for kind, split, n in counts if kind == MAIN and split != "train"]
    found = {}
    for language in corpora[MAIN].languages:
        texts = [n.sides[language] for _, _, n in counts if language in n.sides]
        if texts:
            found[language] = Fertility(total(texts), premium(language, held_out))
    return dict(sorted(found.items(), key=lambda item: (-_or_zero(item[1].premium), -item[1].per_character)))


def _all_counts(corpora: Mapping[str, Corpus]) -> Iterator[tuple[str, str, SplitCounts]]:
    for kind, corpus in corpora.items():
        for pair in corpus.pairs:
            for split, counts in read_counts(corpus, pair).items():
                yield kind, split, counts


def _or_zero(value: float) -> float:
    return 0 if math.isnan(value) else value


def premium(language: str, held_out: list[Mapping[str, Figures]]) -> float:
    """Pieces of a language's held-out text over those of the English text that it is parallel to, NaN without any."""
    if is_english(language):
        return 1.0
    parallel = [
        (sides[language].pieces, figures.pieces)
        for sides in held_out
        if language in sides
        for other, figures in sides.items()
        if is_english(other)
    ]
    ours, english = (sum(column) for column in zip(*parallel, strict=True)) if parallel else (0, 0)
    return ours / english if english else math.nan


def median_premium(languages: Mapping[str, Fertility]) -> float:
    """The median over the languages whose premium is known, NaN without any."""
    known = [fertility.premium for fertility in languages.values() if not math.isnan(fertility.premium)]
    return statistics.median(known) if known else math.nan


def starved(languages: Mapping[str, Fertility]) -> list[str]:
    """The languages whose text takes many more pieces than that of the median language."""
    limit = STARVED * median_premium(languages)
    return [language for language, fertility in languages.items() if fertility.premium >= limit]


def as_dict(languages: Mapping[str, Fertility]) -> dict[str, dict[str, float | int | bool | None]]:
    """The figures of each language as JSON holds them."""
    marked = starved(languages)
    return {
        language: {
            "sentences": fertility.figures.sentences,
            "words": fertility.figures.words,
            "characters": fertility.figures.characters,
            "pieces": fertility.figures.pieces,
            "same_text": None if math.isnan(fertility.premium) else round(fertility.premium, 4),
            "per_word": round(fertility.per_word, 4),
            "per_character": round(fertility.per_character, 4),
            **{sort: round(fertility.share(sort), 6) for sort in ("unknown", "bytes", "single")},
            "uses": fertility.figures.used.bit_count(),
            "starved": language in marked,
        }
        for language, fertility in languages.items()
    }


def table_of(languages: Mapping[str, Fertility], vocabulary: int) -> Table:
    """One row a language."""
    marked = starved(languages)
    header = ["language", "sentences", "same text", "per word", "per character", "unknown", "bytes", "single", "uses"]
    rows = [
        [
            language + "*" * (language in marked),
            f"{fertility.figures.sentences:,}",
            "–" if math.isnan(fertility.premium) else f"{fertility.premium:.2f}",
            f"{fertility.per_word:.2f}",
            f"{fertility.per_character:.3f}",
            *(f"{fertility.share(sort):.2%}" for sort in ("unknown", "bytes", "single")),
            f"{fertility.figures.used.bit_count() / vocabulary:.1%}",
        ]
        for language, fertility in languages.items()
    ]
    return [header, *rows]


def plot_fertility(languages: Mapping[str, Fertility], path: Path) -> None:
    """Draw a row per language, the worst served first: pieces for the same text, characters in a piece, bad pieces."""
    from matplotlib.ticker import PercentFormatter

    marked = starved(languages)
    rows = range(len(languages))
    figure, axes = grid(3, 3.6, 1.2 + 0.19 * len(languages), columns=3, sharey=True)
    colours = ["#c8553d" if language in marked else "#4a7ba6" for language in languages]
    all_of = list(languages.values())
    median = median_premium(languages)
    if not math.isnan(median):
        axes[0].barh(rows, [_or_zero(fertility.premium) for fertility in all_of], 0.7, color=colours)
        axes[0].axvline(median, color="0.2", linewidth=1, linestyle="--", label="median")
        axes[0].axvline(STARVED * median, color="#c8553d", linewidth=1, linestyle=":", label=f"{STARVED} × median")
    axes[0].set_title("pieces for the same text\n(English = 1)", fontsize=10)
    axes[1].barh(rows, [1 / fertility.per_character for fertility in all_of], 0.7, color=colours)
    axes[1].set_title("characters in a piece", fontsize=10)
    left = [0.0] * len(all_of)
    for sort, colour in {"unknown": "#222222", "bytes": "#7b4fa3", "single": "#e0b080"}.items():
        shares = [fertility.share(sort) for fertility in all_of]
        label = "one character" if sort == "single" else sort
        axes[2].barh(rows, shares, 0.7, left=left, color=colour, label=label)
        left = [start + share for start, share in zip(left, shares, strict=True)]
    axes[2].set_title("share of the pieces that are", fontsize=10)
    axes[2].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axis in axes:
        tidy(axis, "x")
    axes[0].set_yticks(rows, list(languages), fontsize=8)
    axes[0].set_ylim(len(languages) - 0.5, -0.5)
    handles = [handle for axis in axes for handle in axis.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    figure.suptitle(f"How the subwords serve each language{f', {len(marked)} starved' if marked else ''}", fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)
