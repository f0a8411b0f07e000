"""Makes languages low-resource: each keeps the training verses that are drawn for it, and an empty line for the others.

FOLDER/SPLIT.LANG.txt.gz, line-aligned over all languages -> TEXT/SPLIT.LANG.txt. The training verses come in a random
order, the same for all languages; the validation set is a random sample; the test set stays whole.

python -m examples.low_resource_study.select_verses FOLDER TEXT eng_Latn deu_Latn swe_Latn:2000 ita_Latn:500
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from moe_nmt.data.text import read_lines, write_text


def draw(lines: list[str], number: int, seed: str) -> list[str]:
    """So many of the lines that have text, by chance, in their places; '' in all others."""
    with_text = [place for place, line in enumerate(lines) if line]
    drawn = set(random.Random(seed).sample(with_text, number))
    return [line if place in drawn else "" for place, line in enumerate(lines)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("text", type=Path, metavar="TEXT")
    parser.add_argument("languages", nargs="+", metavar="LANG[:VERSES]")
    parser.add_argument("--valid", type=int, default=200, help="verses to validate on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of order and samples (default: %(default)s)")
    args = parser.parse_args()
    for language, _, number in (argument.partition(":") for argument in args.languages):
        for split in ("train", "valid", "test"):
            lines = list(read_lines(args.folder / f"{split}.{language}.txt.gz"))
            if split != "test":
                random.Random(f"{args.seed} {split}").shuffle(lines)
            if split == "valid":
                lines = lines[: args.valid]
            if split == "train" and number:
                lines = draw(lines, int(number), f"{args.seed} {language}")
            write_text(args.text / f"{split}.{language}.txt", "".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
