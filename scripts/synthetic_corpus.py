"""A synthetic corpus with the faults of real ones, of any size: English and languages in seven scripts.

FOLDER/train.eng_Latn-L.{eng_Latn,L}, test.… and FOLDER/corpus.yaml, which `collect.sh` takes. Words follow Zipf's law.
About one pair in ten is a duplicate or has a fault that a filter drops; some are leaked test sentences.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

ALPHABETS = {
    "Latn": "abcdefghijklmnopqrstuvwxyzäéñöü",
    "Cyrl": "абвгдежзийклмнопрстуфхцчшщыьэюя",
    "Grek": "αβγδεζηθικλμνξοπρστυφχψω",
    "Arab": "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "Hebr": "אבגדהוזחטיכלמנסעפצקרשת",
    "Deva": "अआइईउऊएऐओऔकखगघचछजझटठडढतथदधनपफबभमयरलवशषसह",
    "Armn": "աբգդեզէըթժիլխծկհձղճմյնշոչպջռսվտրցւփքօֆ",
}
LANGUAGES = [
    *("deu_Latn", "fra_Latn", "spa_Latn", "rus_Cyrl", "ell_Grek", "arb_Arab", "heb_Hebr", "hin_Deva", "hye_Armn"),
    *("ita_Latn", "nld_Latn", "ukr_Cyrl", "bul_Cyrl", "pes_Arab", "mar_Deva", "por_Latn", "pol_Latn", "swe_Latn"),
    *("npi_Deva", "urd_Arab"),
]
VOCABULARY = 20_000
HELD_OUT = 1000


def write_corpus(folder: Path, directions: int, pairs: int, workers: int) -> None:
    """Write `directions` directions out of English, of so many training pairs each; ValueError for more than 20."""
    if directions > len(LANGUAGES):
        raise ValueError(f"there are {len(LANGUAGES)} languages beside English, not {directions}")
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(partial(write_direction, folder, pairs), LANGUAGES[:directions]))
    write_config(folder, directions)


def write_config(folder: Path, directions: int) -> None:
    """Write FOLDER/corpus.yaml with the first directions."""
    names = ", ".join(f"eng_Latn-{language}" for language in LANGUAGES[:directions])
    sources = [
        f"  - name: {split}\n    format: text\n    split: {split}\n    directions: [{names}]\n"
        f"    path: {split}.{{source}}-{{target}}.{{language}}\n"
        for split in ("train", "test")
    ]
    (folder / "corpus.yaml").write_text("sources:\n" + "".join(sources), encoding="utf-8")


def write_direction(folder: Path, pairs: int, language: str) -> None:
    """Write the training and the test pairs of one direction; the same ones every time."""
    rng = np.random.default_rng(LANGUAGES.index(language))
    sides = [vocabulary("Latn", 0), vocabulary(language[-4:], 1 + LANGUAGES.index(language))]
    test = sentences(rng, sides, HELD_OUT)
    train = with_faults(rng, sentences(rng, sides, pairs), test)
    for split, text in (("train", train), ("test", test)):
        for code, lines in zip(("eng_Latn", language), text, strict=True):
            path = folder / f"{split}.eng_Latn-{language}.{code}"
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def vocabulary(script: str, seed: int) -> list[str]:
    """Words of one script, the shorter ones first."""
    rng = np.random.default_rng(seed)
    letters = np.array(list(ALPHABETS[script]))
    lengths = np.sort(rng.integers(2, 12, VOCABULARY))
    return ["".join(rng.choice(letters, length)) for length in lengths]


def sentences(rng: np.random.Generator, sides: list[list[str]], number: int) -> list[list[str]]:
    """Both sides of so many pairs of 3 to 30 words, the target a little shorter or longer."""
    lengths = rng.integers(3, 31, number)
    weights = 1 / np.arange(1, VOCABULARY + 1)
    steps = np.cumsum(weights / weights.sum())
    text = []
    for words, extra in zip(sides, (0, 2), strict=True):
        counts = np.maximum(3, lengths + rng.integers(-extra, extra + 1, number))
        drawn = np.searchsorted(steps, rng.random(int(counts.sum())))
        ends = np.cumsum(counts)
        text.append([" ".join([words[i] for i in drawn[end - n : end]]) for end, n in zip(ends, counts, strict=True)])
    return text


def with_faults(rng: np.random.Generator, text: list[list[str]], test: list[list[str]]) -> list[list[str]]:
    """The pairs with about one in ten spoilt."""
    source, target = text
    number = len(source)
    for place, fault in zip(rng.permutation(number)[: number // 10], rng.integers(0, 10, number // 10), strict=True):
        other = int(rng.integers(number))
        match fault:
            case 0 | 1 | 2:
                source[place], target[place] = source[other], target[other]
            case 3:
                source[place], target[place] = source[other].upper() + "!", target[other] + "."
            case 4:
                source[place] = test[0][other % len(test[0])]
            case 5:
                target[place] = source[place]
            case 6:
                source[place] = source[place] + " " + "." * 30
            case 7:
                target[place] = " ".join([target[place]] * 12)
            case 8:
                source[place] = f"  {source[place]}\u00a0\u2009{other} "
            case 9:
                target[place] = f"{other} / {place} - {other}"
    return [source, target]
