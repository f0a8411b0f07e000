"""The YAML file that describes a corpus: its languages, where its text comes from, and how it is cleaned."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_prep.formats import FORMATS
from data_prep.yaml_keys import Keys, read_yaml
from moe_nmt.data import SPLITS, CorpusError, Direction, check_code
from moe_nmt.data.codes import parse as parse_code
from moe_nmt.data.corpus import KIND, MAIN
from moe_nmt.data.directions import check_unique, unknown
from moe_nmt.errors import UserError
from moe_nmt.registry import Spec

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
SPLIT_NAME = re.compile(r"[A-Za-z0-9_.-]+")
TOP_KEYS = ("languages", "sources", "filters")
SOURCE_KEYS = (
    *("name", "format", "path", "url", "sha256", "opus", "mtdata", "pairs", "directions", "split", "kind", "codes"),
    *("on_bad_line", "on_bad_file", "max_line_bytes"),
)


@dataclass(frozen=True)
class Source:
    """Where some of the text of a corpus comes from.

    `pairs` are language pairs (or, if `one_way`, directions), or `all` or `english`: every two languages that are
    found, or English with each other. `splits` gives what the files call our splits. `codes` gives what the files call
    our languages, where the library does not tell. `sha256` is one checksum for each `url`, or empty.
    """

    name: str
    format: Spec
    path: str | None
    url: tuple[str, ...]
    sha256: tuple[str, ...]
    opus: str | None
    mtdata: str | None
    pairs: tuple[Direction, ...] | Literal["all", "english"]
    one_way: bool
    splits: Mapping[str, str]
    kind: str
    codes: Mapping[str, str]
    on_bad_line: Literal["drop", "refuse"]
    on_bad_file: Literal["refuse", "skip"]
    max_line_bytes: int

    @property
    def listed_pairs(self) -> tuple[Direction, ...]:
        """The pairs or directions that the file lists; none where they are to be found."""
        return () if isinstance(self.pairs, str) else self.pairs


@dataclass(frozen=True)
class Config:
    """What a YAML file says.

    `languages` are all languages of the corpus in their order, or empty: those that are found. `filters` are those of
    cleaning, in order, in the notation name(option=value); None: the usual ones.
    """

    path: Path
    languages: tuple[str, ...]
    sources: tuple[Source, ...]
    filters: list[str] | None


def read_config(path: Path) -> Config:
    """Reads and checks the file; CorpusError, with the file and the key, for what cannot be meant."""
    try:
        return _config(path, read_yaml(path))
    except (UserError, RecursionError) as error:
        raise CorpusError(f"{path}: {error}") from None


def _config(path: Path, keys: Keys) -> Config:
    languages = keys.texts("languages")
    for language in languages:
        parse_code(check_code(language))
    _check_once(languages, "languages")
    filters = list(keys.texts("filters")) if "filters" in keys else None
    entries = keys.entries("sources")
    keys.rest((), known=TOP_KEYS)
    if not entries:
        raise CorpusError("sources is empty: name at least one source with its format, path and pairs")
    sources = tuple(_source(entry, languages) for entry in entries)
    _check_once([source.name for source in sources], "sources")
    return Config(path, languages, sources, filters)


def _source(keys: Keys, languages: Sequence[str]) -> Source:
    name = keys.text("name")
    if not NAME.fullmatch(name):
        raise CorpusError(f"{keys.where}: '{name}' is no name: use letters, digits, '-', '_' and '.'")
    keys.where = f"source {name}"
    format_name = keys.text("format", "opus" if "opus" in keys else "tsv" if "mtdata" in keys else "text")
    split_names = FORMATS.entry(format_name).part.split_names
    pairs, one_way = _pairs(keys, languages)
    source = Source(
        name,
        Spec(format_name),
        path=keys.text("path") if "path" in keys else None,
        url=keys.texts("url"),
        sha256=keys.texts("sha256"),
        opus=keys.text("opus") if "opus" in keys else None,
        mtdata=keys.text("mtdata") if "mtdata" in keys else None,
        pairs=pairs,
        one_way=one_way,
        splits=_splits(keys, split_names),
        kind=keys.text("kind", MAIN),
        codes=_codes(keys, languages),
        on_bad_line=keys.choice("on_bad_line", ("drop", "refuse")),
        on_bad_file=keys.choice("on_bad_file", ("refuse", "skip")),
        max_line_bytes=keys.positive("max_line_bytes", 64 << 10),
    )
    _check_source(source, keys.where)
    source.format.options.update(_options(format_name, keys))
    return source


def _options(name: str, keys: Keys) -> dict[str, object]:
    """The keys that are left: the options of the format."""
    allowed = FORMATS.entry(name).options
    try:
        return FORMATS.check(Spec(name, keys.rest(allowed, known=[*SOURCE_KEYS, *allowed])))
    except UserError as error:
        raise CorpusError(f"{keys.where}: {error}") from None


def _check_source(source: Source, where: str) -> None:
    origins = {"url": source.url, "opus": source.opus, "mtdata": source.mtdata}
    given = [name for name, value in origins.items() if value]
    if len(given) > 1 or not (given or source.path):
        raise CorpusError(f"{where} must say where its text is: by a path, or by one of url, opus and mtdata")
    if source.sha256 and len(source.sha256) != len(source.url):
        raise CorpusError(f"{where}: sha256 must be one checksum for each url, that is {len(source.url)}")
    for checksum in source.sha256:
        if not re.fullmatch("[0-9a-fA-F]{64}", checksum):
            raise CorpusError(f"{where}: sha256 '{checksum}' is none: write its 64 hexadecimal digits")
    if not KIND.fullmatch(source.kind):
        raise CorpusError(f"{where}: kind '{source.kind}' is no name: use letters, digits, '-', '_' and '.'")
    for origin, implied in (("opus", "opus"), ("mtdata", "tsv")):
        if origin in given and source.format.name != implied:
            raise CorpusError(f"{where}: what {origin} fetches is in the format {implied}: leave out its format")
    if (source.opus or source.mtdata) and isinstance(source.pairs, str):
        raise CorpusError(f"{where}: list its pairs, since only those that are asked for are downloaded")


def _pairs(keys: Keys, languages: Sequence[str]) -> tuple[tuple[Direction, ...] | Literal["all", "english"], bool]:
    one_way = "directions" in keys
    if one_way is ("pairs" in keys):
        raise CorpusError(
            f"{keys.where} needs either pairs (a list as [eng_Latn-deu_Latn], all, or english) or a list of directions"
        )
    written = keys.texts("directions" if one_way else "pairs")
    if written == ("all",) and not one_way:
        return "all", False
    if written == ("english",) and not one_way:
        return "english", False
    if not written:
        raise CorpusError(f"{keys.where}: its list of pairs is empty: write at least one, as eng_Latn-deu_Latn")
    pairs = tuple(map(Direction.parse, written))
    check_unique(pairs, keys.where)
    for pair in pairs:
        if pair.reverse in pairs and not one_way:
            raise CorpusError(f"{keys.where}: {pair} and {pair.reverse} are the same language pair: keep one of them")
        for language in (pair.source, pair.target):
            if languages and language not in languages:
                raise unknown("language", language, languages, "the list of languages")
            parse_code(language)
    return pairs, one_way


def _codes(keys: Keys, languages: Sequence[str]) -> dict[str, str]:
    codes = keys.table("codes")
    for language in codes:
        check_code(language)
        if languages and language not in languages:
            raise unknown("language", language, languages, "the list of languages")
    return codes


def _splits(keys: Keys, names: Mapping[str, str]) -> Mapping[str, str]:
    """What the files call our splits: by a table, or as the format has it."""
    if isinstance(keys.left.get("split"), dict):
        splits: Mapping[str, str] = keys.table("split")
    else:
        wanted = keys.texts("split") or tuple(names) or ("train",)
        splits = {split: names.get(split, split) for split in wanted}
        _check_once(wanted, f"{keys.where}: split")
    for split, name in splits.items():
        if split not in SPLITS:
            raise unknown("split", split, SPLITS, keys.where)
        if not SPLIT_NAME.fullmatch(name):
            raise CorpusError(
                f"{keys.where}: split {split} cannot be called '{name}': use letters, digits, '-', '_', '.'"
            )
    return splits


def _check_once(names: Sequence[str], where: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise CorpusError(f"'{name}' stands twice in {where}: keep it once")
