"""Signs of bad translations that need no quality metric: wrong language or script, copies, repetitions, lengths."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass

from moe_nmt.data import Direction
from moe_nmt.data.language_id import UNDECIDED, LanguageIdentifier
from moe_nmt.data.text import normalise_spaces
from moe_nmt.evaluation.metrics import writes_spaces

NGRAM = 4
EXCESS = 2
SCRIPT_SHARE = 0.05
USELESS = 0.5  # the error on references from which on an identifier does not know a language
TITLES = {
    "off_target": "off-target",
    "off_target_references": "(references)",
    "wrong_script": "wrong script",
    "empty": "empty",
    "copies": "copies",
    "repetitive": "repetitive",
    "length_ratio": "length ratio",
}
MEANINGS = {
    "off_target": "share of translations that language identification finds in another language than the target, among "
    "the languages of the evaluation; in brackets the same for the references, which is the error of the identifier",
    "wrong_script": "share of which most letters are in scripts that the references do not use",
    "empty": "share without text",
    "copies": "share that repeats the source",
    "repetitive": f"share in which some {NGRAM}-gram of words (of characters where words have no spaces) occurs at "
    f"least {EXCESS} times more often than any does in the reference, after Raunak et al. 2021",
    "length_ratio": "characters of all translations by characters of all references",
}


@dataclass(frozen=True)
class Signs:
    """Shares of a direction's translations, from 0 to 1, and the ratio of lengths; see MEANINGS. None: not known."""

    off_target: float | None
    off_target_references: float | None
    wrong_script: float
    empty: float
    copies: float | None
    repetitive: float
    length_ratio: float | None

    def known(self) -> dict[str, float]:
        """The values that are known by their names."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def find_signs(
    direction: Direction,
    hypotheses: Sequence[str],
    references: Sequence[str],
    sources: Sequence[str] | None,
    identifier: LanguageIdentifier | None,
) -> Signs:
    """The signs in the translations of one direction."""
    scripts = main_scripts(references)
    in_words = writes_spaces(direction.target)
    pairs = list(zip(hypotheses, references, strict=True))
    length = sum(map(len, references))
    error = off_target(references, direction.target, identifier)
    knows = error is not None and error < USELESS
    return Signs(
        off_target=off_target(hypotheses, direction.target, identifier) if knows else None,
        off_target_references=error if knows else None,
        wrong_script=share(is_in_other_script(hypothesis, scripts) for hypothesis in hypotheses),
        empty=share(not hypothesis.strip() for hypothesis in hypotheses),
        copies=share(map(is_copy, hypotheses, sources, references)) if sources else None,
        repetitive=share(is_repetitive(hypothesis, reference, in_words) for hypothesis, reference in pairs),
        length_ratio=sum(map(len, hypotheses)) / length if length else None,
    )


def share(found: Iterable[bool]) -> float:
    """How many are true, of all; 0 of none."""
    found = list(found)
    return sum(found) / len(found) if found else 0.0


def off_target(lines: Iterable[str], target: str, identifier: LanguageIdentifier | None) -> float | None:
    """The share of lines in another language than the target, of those with letters; None where it cannot be told."""
    if identifier is None or not identifier.knows(target):
        return None
    languages = [language for language in identifier.identify(lines) if language != UNDECIDED]
    return share(not identifier.same(language, target) for language in languages)


def is_copy(hypothesis: str, source: str, reference: str) -> bool:
    """Whether the source is repeated, where the reference does not do so."""
    text = normalise_spaces(hypothesis).casefold()
    return text != "" and text == normalise_spaces(source).casefold() != normalise_spaces(reference).casefold()


def is_repetitive(hypothesis: str, reference: str, in_words: bool) -> bool:
    """Whether the most frequent n-gram occurs at least EXCESS times more often than that of the reference."""
    return most_frequent_ngram(hypothesis, in_words) >= most_frequent_ngram(reference, in_words) + EXCESS


def most_frequent_ngram(text: str, in_words: bool) -> int:
    """How often it occurs; 0 in a text that has no n-gram."""
    tokens: Sequence[str] = text.split() if in_words else "".join(text.split())
    ngrams = Counter(tuple(tokens[start : start + NGRAM]) for start in range(len(tokens) - NGRAM + 1))
    return max(ngrams.values(), default=0)


def main_scripts(lines: Iterable[str]) -> set[str]:
    """The scripts that at least SCRIPT_SHARE of the letters are in."""
    letters = Counter("".join(lines))
    scripts: Counter[str] = Counter()
    for character, times in letters.items():
        if character.isalpha():
            scripts[script(character)] += times
    return {name for name, times in scripts.items() if times >= SCRIPT_SHARE * scripts.total()}


def is_in_other_script(line: str, scripts: Collection[str]) -> bool:
    """Whether more than half of the letters are in scripts other than these."""
    letters = [character for character in line if character.isalpha()]
    return 2 * sum(script(character) not in scripts for character in letters) > len(letters)


@functools.cache
def script(character: str) -> str:
    """Its script in Unicode, by ISO 15924."""
    from fontTools import unicodedata

    return str(unicodedata.script(character))
