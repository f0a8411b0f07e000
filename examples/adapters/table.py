"""Ways to add languages compared: chrF++ on the new and on the old ones, trained parameters and time.

python -m examples.adapters.table RUN --new nld,bul,ita --json results.json --markdown results.md --plot results.png
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from moe_nmt.data.text import read_lines, write_text
from moe_nmt.errors import UserError
from moe_nmt.evaluation.plots import grid, save

BASE = "base"
COLUMNS = {
    "name": "row",
    "what": "what is trained",
    "on": "on",
    "trained": "trained parameters",
    "of_full": "of the base's",
    "seconds": "seconds",
    "new": "chrF++ new",
    "new_from": "new → English",
    "new_into": "English → new",
    "old": "chrF++ old",
}


def read_rows(run: Path, new: set[str]) -> list[dict[str, Any]]:
    """The base and the finished rows of rows.tsv; says on stderr which are not finished."""
    table = [line.split("\t") for line in read_lines(Path(__file__).with_name("rows.tsv"))][1:]
    described = [(BASE, "the base model", "old"), *((name, what, on) for name, what, on, _ in table)]
    rows = []
    for name, what, on in described:
        if (run / name / "scores.json").is_file():
            rows.append({"name": name, "what": what, "on": on} | read_row(run / name, new))
        else:
            print(f"table: {run / name} is not finished, left out", file=sys.stderr)
    if not rows or rows[0]["name"] != BASE:
        raise UserError(f"{run / BASE} has no scores, which all rows are compared with; run examples/adapters/run.sh.")
    for row in rows:
        row["of_full"] = row["trained"] / rows[0]["trained"]
    return rows


def read_row(folder: Path, new: set[str]) -> dict[str, Any]:
    """What one training's log and scores say."""
    log = (folder / "train.log").read_text(encoding="utf-8")
    (trained,) = set(re.findall(r"num\. shared model params: [\d,]+ \(num\. trained: ([\d,]+)\)", log))
    seconds = [float(found) for found in re.findall(r"done training in ([\d.]+) seconds", log)]
    scores = {
        tuple(pair.split("-")): values["chrf++"]
        for pair, values in json.loads((folder / "scores.json").read_text(encoding="utf-8"))["directions"].items()
    }
    added = {pair: score for pair, score in scores.items() if new & set(pair)}
    return {
        "trained": int(trained.replace(",", "")),
        "seconds": sum(seconds),
        "new": statistics.fmean(added.values()),
        "new_from": statistics.fmean(score for pair, score in added.items() if pair[0] in new),
        "new_into": statistics.fmean(score for pair, score in added.items() if pair[1] in new),
        "old": statistics.fmean(score for pair, score in scores.items() if pair not in added),
        "directions": {"-".join(pair): score for pair, score in scores.items()},
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table to read."""
    formats = {"trained": ",d", "of_full": ".1%", "seconds": ".0f"} | dict.fromkeys(
        ("new", "new_from", "new_into", "old"), ".1f"
    )
    lines = [f"| {' | '.join(COLUMNS.values())} |", f"| --- | --- | --- |{' ---: |' * (len(COLUMNS) - 3)}"]
    lines += [f"| {' | '.join(format(row[key], formats.get(key, '')) for key in COLUMNS)} |" for row in rows]
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """chrF++ on new and on old languages over the number of trained parameters."""
    figure, axes = grid(2, 4.4, 3.6, sharex=True)
    base, *others = rows
    for axis, key, title in zip(axes, ("new", "old"), ("new languages", "old languages"), strict=True):
        axis.axhline(base[key], color="0.6", linestyle="--", label="base model")
        for number, row in enumerate(others):
            axis.scatter(row["trained"], row[key], s=60, color=f"C{number}", label=row["name"], zorder=3)
        axis.set(title=title, xscale="log", xlabel="trained parameters", ylabel="mean chrF++", ylim=(0, 102))
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, fontsize=8, frameon=False)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of run.sh")
    parser.add_argument(
        "--new", required=True, metavar="LANGUAGES", help="the languages that were added, comma-separated"
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--markdown", type=Path, required=True)
    parser.add_argument("--plot", type=Path, required=True)
    args = parser.parse_args()
    rows = read_rows(args.run, set(args.new.split(",")))
    write_text(args.json, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    write_text(args.markdown, markdown(rows))
    plot(rows, args.plot)
    print(markdown(rows))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"table: error: {error}")
