"""The report of cleaning: where every collected line went, as JSON, Markdown and a picture."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_prep.clean_plan import TRAIN, Plan
from data_prep.cleaning import Outcome
from moe_nmt.data.text import write_text
from moe_nmt.evaluation.layout import as_markdown
from moe_nmt.evaluation.plots import grid, save, tidy

INTRODUCTION = (
    "Every line of the sources is in exactly one column: it fell for a reason that `collect` gives (in italics), or at "
    "a filter, in the order of the columns, or it is kept."
)


def write_report(plan: Plan, outcomes: Sequence[Outcome]) -> None:
    """Writes CORPUS/reports/clean.md and clean.png, then clean.json."""
    folder = plan.corpus / "reports"
    folder.mkdir(exist_ok=True)
    write_text(folder / "clean.md", markdown(plan, outcomes))
    if any(outcome.part.split == TRAIN for outcome in outcomes):
        plot(plan, outcomes, folder / "clean.png")
    write_text(folder / "clean.json", json.dumps(as_dict(plan, outcomes), indent=1, ensure_ascii=False) + "\n")


def as_dict(plan: Plan, outcomes: Sequence[Outcome]) -> dict[str, object]:
    """All numbers of the report."""
    rows = [
        {
            "kind": outcome.part.kind,
            "split": outcome.part.split,
            "pair": str(outcome.target.pair),
            "source": outcome.part.source,
            "lines": outcome.part.lines,
            "dropped_by_collect": dict(outcome.part.dropped),
            "fallen": dict(outcome.fallen),
            "edited": dict(outcome.edited),
            "kept": outcome.kept,
        }
        for outcome in outcomes
    ]
    total = {
        "lines": lines_of(outcomes),
        "dropped_by_collect": sum((Counter(outcome.part.dropped) for outcome in outcomes), Counter()),
        "fallen": sum((outcome.fallen for outcome in outcomes), Counter()),
        "kept": sum(outcome.kept for outcome in outcomes),
    }
    return {"filters": {name: str(spec) for name, spec in plan.steps}, "total": total, "texts": rows}


def fates(outcomes: Iterable[Outcome]) -> Counter[str]:
    """Lines by what became of them: the reasons of collect, the filters, `kept`; they add up to the lines read."""
    found: Counter[str] = Counter()
    for outcome in outcomes:
        found.update({f"_{reason}_": count for reason, count in outcome.part.dropped.items()})
        found.update(outcome.fallen)
        found["kept"] += outcome.kept
    return found


def by_text(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """The outcomes of each text, by its name."""
    texts: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        texts.setdefault(str(outcome.target), []).append(outcome)
    return texts


def reasons(plan: Plan, outcomes: Sequence[Outcome]) -> list[str]:
    """What lines can fall for, in the order in which they do; filters at which none fell are left out."""
    found = fates(outcomes)
    collected = sorted({f"_{reason}_" for outcome in outcomes for reason in outcome.part.dropped})
    return [reason for reason in [*collected, *(name for name, _ in plan.steps)] if found[reason]]


def markdown(plan: Plan, outcomes: Sequence[Outcome]) -> str:
    """The text of clean.md."""
    training = [outcome for outcome in outcomes if outcome.part.split == TRAIN]
    lines = sum(outcome.part.lines for outcome in training)
    found, edited = fates(training), sum((outcome.edited for outcome in training), Counter[str]())
    filters = [
        [f"`{spec}`", f"{edited[name]:,}" if name in edited else "", f"{found[name]:,}", share(found[name], lines)]
        for name, spec in plan.steps
    ]
    sources: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        sources.setdefault(outcome.part.source, []).append(outcome)
    sections = [
        "# What became of the collected lines",
        INTRODUCTION,
        f"## Filters\n\nOf {lines:,} lines for training {found['kept']:,} are kept ({share(found['kept'], lines)}).",
        as_markdown([["filter", "edited", "fell", "of all lines"], *filters]),
        "## Texts",
        counts(plan, outcomes, "text", by_text(outcomes)),
        "## Sources",
        counts(plan, outcomes, "source", sources),
        "## Examples of what fell",
        as_markdown([["text", "filter", "source", "target"], *examples(training)]),
    ]
    return "\n\n".join(sections) + "\n"


def counts(plan: Plan, outcomes: Sequence[Outcome], title: str, groups: Mapping[str, Sequence[Outcome]]) -> str:
    """A table of what became of the lines of each group, and of all."""
    columns = [*reasons(plan, outcomes), "kept"]
    rows = []
    for name, members in [*groups.items(), ("all", outcomes)]:
        lines, found = sum(outcome.part.lines for outcome in members), fates(members)
        rows.append([name, f"{lines:,}", *(f"{found[column]:,}" for column in columns), share(found["kept"], lines)])
    return as_markdown([[title, "lines", *columns, "kept, %"], *rows])


def examples(outcomes: Sequence[Outcome], each: int = 3) -> list[list[str]]:
    """Some pairs that fell at each filter, from different texts where there are such."""
    rows: dict[str, list[list[str]]] = {}
    for place in range(each):
        for outcome in outcomes:
            for name, pairs in outcome.examples.items():
                shown = rows.setdefault(name, [])
                if len(shown) < each and place < len(pairs):
                    shown.append([str(outcome.target), name, *map(cell, pairs[place])])
    return [row for shown in rows.values() for row in shown]


def cell(text: str, longest: int = 120) -> str:
    """The text as it can stand in a cell of a Markdown table, cut where it is long."""
    printable = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text[: longest + 1])
    cut = printable if len(text) <= longest else printable[:longest] + " …"
    return "".join(f"\\{char}" if char in "|\\`*_<>[]" else char for char in cut)


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def plot(plan: Plan, outcomes: Sequence[Outcome], path: Path) -> None:
    """Draws for each training text the share of its lines that fell, by reason, and how many are kept."""
    import matplotlib

    training = [outcome for outcome in outcomes if outcome.part.split == TRAIN]
    texts = by_text(training)
    columns = reasons(plan, training)
    palette = matplotlib.colormaps["tab20"]
    figure, (axis,) = grid(1, 9.5, 1.5 + 0.24 * len(texts))
    left = [0.0] * len(texts)
    for number, reason in enumerate(columns):
        shares = [100 * fates(text)[reason] / max(1, lines_of(text)) for text in texts.values()]
        axis.barh(range(len(texts)), shares, left=left, color=palette(number % 20), label=reason.strip("_"), height=0.8)
        left = [start + width for start, width in zip(left, shares, strict=True)]
    longest = max([*left, 0.1])
    for row, (text, end) in enumerate(zip(texts.values(), left, strict=True)):
        axis.text(end + longest / 90, row, f"{fates(text)['kept']:,}", va="center", fontsize=7, color="0.35")
    axis.set_yticks(range(len(texts)), [name.replace(f"{TRAIN} ", "") for name in texts], fontsize=8)
    axis.set_ylim(len(texts) - 0.4, -0.6)
    axis.set_xlim(0, longest * 1.12)
    axis.set_xlabel("% of the lines of its sources that fell; beside the bar the pairs that are kept", fontsize=9)
    tidy(axis, "x")
    figure.suptitle("What fell in collecting and cleaning, by language pair", fontsize=12)
    if columns:
        figure.legend(loc="outside lower center", ncols=min(5, len(columns)), fontsize=8, frameon=False)
    save(figure, path)


def lines_of(outcomes: Iterable[Outcome]) -> int:
    return sum(outcome.part.lines for outcome in outcomes)
