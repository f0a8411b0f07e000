"""From languages and sizes to the files of a corpus: splits that share nothing, written once and whole."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import babel
from babel.core import get_cldr_version

from data_prep.steps import Progress, say
from moe_nmt.data import SPLITS, Corpus, CorpusError, Direction
from moe_nmt.data.text import rewriting, write_text

from .locales import find_language
from .phrases import INVENTORIES, Content, Inventory, Phrasebook
from .sentences import draw, render

ENGLISH = "eng"
STEP = "cldr"
_PATIENCE = 20_000  # draws without a new sentence after which a language counts as exhausted
Pair = tuple[str, str]  # an English sentence and its translation


@dataclass(frozen=True)
class Settings:
    """What determines the corpus, byte for byte, at given versions of Babel and of this package."""

    train: dict[str, int]  # language -> pairs with English
    valid: int
    test: int
    seed: int
    inventory: str


def parse_sizes(text: str) -> dict[str, int]:
    """``"deu,fra:12000,jpn:600"`` -> ``{"deu": 12000, "fra": 12000, "jpn": 600}``: a code takes the next size given.

    Raises `CorpusError` with the culprit.
    """
    sizes: dict[str, int] = {}
    waiting: list[str] = []
    for item in text.split(","):
        code, _, size = item.strip().partition(":")
        if find_language(code).code == ENGLISH:
            raise CorpusError("English is one side of every pair: leave 'eng' out of the languages.")
        if code in sizes or code in waiting:
            raise CorpusError(f"the language '{code}' is given twice.")
        waiting.append(code)
        if size:
            sizes |= dict.fromkeys(waiting, _positive(size, item.strip()))
            waiting.clear()
    if waiting:
        raise CorpusError(f"the language '{waiting[0]}' has no size; write for example '{waiting[0]}:1000'.")
    return sizes


def _positive(size: str, item: str) -> int:
    if size.isdecimal() and int(size):
        return int(size)
    raise CorpusError(f"the size in '{item}' is not a positive whole number.")


@dataclass
class HeldOut:
    """Valid and test pairs of every language, and all that training must therefore not contain."""

    pairs: dict[tuple[str, str], list[Pair]]  # (split, language) -> pairs
    contents: set[Content] = field(default_factory=set)
    sentences: dict[str, set[str]] = field(default_factory=dict)  # language -> its held-out sentences


class Generator:
    """Draws the pairs of one corpus; every language trains on a random stream of its own."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.inventory: Inventory = INVENTORIES[settings.inventory]()
        self.books = {code: Phrasebook(find_language(code)) for code in (ENGLISH, *settings.train)}

    def held_out(self) -> HeldOut:
        """The same contents for all languages, as far as a language has them. Raises `CorpusError` when exhausted."""
        rng = Random(f"{self.settings.seed}:held out")
        result = HeldOut({}, sentences={code: set() for code in self.books})
        for split, size in (("test", self.settings.test), ("valid", self.settings.valid)):
            result.pairs |= {(split, code): [] for code in self.settings.train}
            self._fill(rng, split, size, result)
        return result

    def _fill(self, rng: Random, split: str, size: int, result: HeldOut) -> None:
        open_codes = list(self.settings.train)
        misses = 0
        while open_codes := [code for code in open_codes if len(result.pairs[split, code]) < size]:
            misses += 1
            if misses > _PATIENCE:
                raise self._exhausted(open_codes[0], len(result.pairs[split, open_codes[0]]), split)
            content = draw(rng, self.inventory)
            english = render(content, self.books[ENGLISH])
            if content in result.contents or english is None or english in result.sentences[ENGLISH]:
                continue
            texts = {code: render(content, self.books[code]) for code in open_codes}
            fresh = {code: text for code, text in texts.items() if text and text not in result.sentences[code]}
            for code, text in fresh.items():
                result.pairs[split, code].append((english, text))
                result.sentences[code].add(text)
            if fresh:
                misses = 0
                result.contents.add(content)
                result.sentences[ENGLISH].add(english)

    def training(self, code: str, held_out: HeldOut) -> Iterator[Pair]:
        """The training pairs of a language, no sentence of either side twice. Raises `CorpusError` when exhausted."""
        rng = Random(f"{self.settings.seed}:train:{code}")
        english_used, other_used = set(held_out.sentences[ENGLISH]), set(held_out.sentences[code])
        found = misses = 0
        while found < self.settings.train[code]:
            misses += 1
            if misses > _PATIENCE:
                raise self._exhausted(code, found, "train")
            content = draw(rng, self.inventory)
            english, other = (render(content, self.books[side]) for side in (ENGLISH, code))
            if content in held_out.contents or None in (english, other):
                continue
            if english in english_used or other in other_used:
                continue
            english_used.add(english)
            other_used.add(other)
            found, misses = found + 1, 0
            yield english, other

    def _exhausted(self, code: str, found: int, split: str) -> CorpusError:
        return CorpusError(
            f"CLDR gives only {found:,} different {split} sentences for '{code}' with the {self.settings.inventory} "
            "inventory; ask for fewer, or for --inventory full."
        )


def generate(settings: Settings, folder: Path) -> None:
    """Write the corpus of ``settings`` into ``folder``, unless it is there already, whole. Reports on stderr.

    A file appears under its name only when complete, and ``raw/manifest.json`` says last that all are.
    Raises `CorpusError` when a language cannot give as many sentences.
    """
    path = folder / "raw" / "manifest.json"
    manifest = _manifest(settings)
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"files": []}
    if old == manifest and all((folder / name).exists() for name in manifest["files"]):
        say(STEP, f"{folder} is up to date, skipped")
        return
    for name in set(old["files"]) - set(manifest["files"]):
        (folder / name).unlink(missing_ok=True)
    write_text(path, _as_json(manifest | {"complete": False}))
    _write_corpus(settings, folder)
    write_text(path, _as_json(manifest))
    say(STEP, f"wrote {folder}")


def _manifest(settings: Settings) -> dict:
    program = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))
    return {
        "complete": True,
        "babel": babel.__version__,
        "cldr": get_cldr_version(),
        "program": program.hexdigest()[:16],
        "settings": asdict(settings),
        "files": _files(settings),
    }


def _files(settings: Settings) -> list[str]:
    raw = [_raw(split, code, side) for code in settings.train for split in SPLITS for side in (ENGLISH, code)]
    return ["languages.txt", "directions.tsv", *raw]


def _as_json(manifest: dict) -> str:
    return json.dumps(manifest, indent=2) + "\n"


def _raw(split: str, code: str, side: str) -> str:
    return f"raw/{split}.{ENGLISH}-{code}.{side}"


def _write_corpus(settings: Settings, folder: Path) -> None:
    generator = Generator(settings)
    say(STEP, f"drawing the valid and test sentences of {len(settings.train)} languages")
    held_out = generator.held_out()
    progress = Progress(STEP, {f"{ENGLISH}-{code}": size for code, size in settings.train.items()})
    counts = {}
    for code, size in settings.train.items():
        for split in ("valid", "test"):
            _write_pairs(folder, split, code, held_out.pairs[split, code])
        _write_pairs(folder, "train", code, generator.training(code, held_out))
        progress.finish(f"{ENGLISH}-{code}", f"{size:,} pairs")
        sizes = {"train": size, "valid": settings.valid, "test": settings.test}
        counts |= {Direction(ENGLISH, code): sizes, Direction(code, ENGLISH): sizes}
    Corpus.empty(folder).adding(counts).save()


def _write_pairs(folder: Path, split: str, code: str, pairs: Iterable[Pair]) -> None:
    paths = [folder / _raw(split, code, side) for side in (ENGLISH, code)]
    with rewriting(*paths) as files:
        for pair in pairs:
            for file, sentence in zip(files, pair, strict=True):
                file.write(sentence + "\n")
