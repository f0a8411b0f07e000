"""Which of the language pairs that a source holds are wanted, and what we call them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from data_prep.config import Config, Source
from data_prep.formats.format import Pair
from data_prep.steps import say
from moe_nmt.data import CorpusError, Direction, is_english
from moe_nmt.data.codes import flores_code, is_code, nearest, same_language
from moe_nmt.data.directions import unknown


@dataclass
class Languages:
    """The languages of a corpus, and its language pairs, each of which has one name in all sources.

    `listed` are all languages where the user lists them, else empty; `names` are those known so far.
    """

    listed: tuple[str, ...]
    names: list[str]
    pairs: dict[frozenset[str], Direction] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config) -> Languages:
        """Those that the file lists, or else those that stand in its lists of pairs."""
        written = [(source, pair) for source in config.sources for pair in source.listed_pairs]
        mentioned = [code for _, pair in written for code in (pair.source, pair.target)]
        languages = cls(config.languages, list(dict.fromkeys([*config.languages, *mentioned])))
        for source, pair in written:
            if not source.one_way:
                languages.named(pair)
        return languages

    def named(self, pair: Direction) -> Direction:
        """The language pair under the name it has in this corpus, that of its first mention."""
        return self.pairs.setdefault(frozenset((pair.source, pair.target)), pair)

    def choose(self, source: Source, held: Collection[Pair], where: str) -> dict[Direction, Pair]:
        """The wanted pairs by our names, each with what the files call its two sides.

        CorpusError where one is not held, or none is wanted.
        """
        if isinstance(source.pairs, str):
            return self._found(source, held, where)
        pairs = source.pairs if source.one_way else tuple(map(self.named, source.pairs))
        return held_as(pairs, source, held, where)

    def _found(self, source: Source, held: Collection[Pair], where: str) -> dict[Direction, Pair]:
        codes = list(dict.fromkeys(itertools.chain.from_iterable(held)))
        names = self._name(source, codes)
        order = self.listed or sorted(names.values(), key=lambda name: (not is_english(name), len(name), name))
        found = {}
        for pair in held:
            ours = sorted((names[code] for code in pair if code in names), key=order.index)
            if len(ours) == 2 and not same_language(*ours):
                name = self.named(Direction(*ours))
                found[name] = pair if names[pair[0]] == name.source else pair[::-1]
        if source.pairs == "english":
            english = next(filter(is_english, order), None)
            found = {name: pair for name, pair in found.items() if english in (name.source, name.target)}
        if not found:
            raise CorpusError(f"{where} has no language pair that is wanted; its languages are {_listing(codes)}")
        return dict(sorted(found.items(), key=lambda item: sorted(map(order.index, (item[0].source, item[0].target)))))

    def _name(self, source: Source, codes: Sequence[str]) -> dict[str, str]:
        """What we call the languages of a source, by its codes, without those that are not of the corpus."""
        wanted = {theirs: ours for ours, theirs in source.codes.items() if not self.listed or ours in self.listed}
        names = {theirs: ours for theirs, ours in wanted.items() if theirs in codes}
        for ours in self.names:
            theirs = nearest(ours, [code for code in codes if code not in names])
            if theirs and ours not in names.values():
                names[theirs] = ours
        unnamed = [code for code in codes if code not in names and is_code(code) and not self.listed]
        for theirs in sorted(unnamed, key=len):
            full = flores_code(theirs)
            short = "_".join(full.split("_")[:2])
            name = short if nearest(short, [theirs]) and short not in names.values() else full
            if name not in names.values():
                names[theirs] = name
        left = [code for code in codes if code not in names]
        if left and not self.listed:
            say("collect", f"{source.name}: passed over {_listing(left)}, no language or one that is there already")
        self.names = list(dict.fromkeys([*self.names, *names.values()]))
        return names


def held_as(pairs: Sequence[Direction], source: Source, held: Collection[Pair], where: str) -> dict[Direction, Pair]:
    """What the files call the two languages of each pair; CorpusError where one is not held, either way round."""
    codes = dict.fromkeys(itertools.chain.from_iterable(held))
    theirs: dict[str, str] = {}
    for language in dict.fromkeys(code for pair in pairs for code in (pair.source, pair.target)):
        code = source.codes.get(language) or nearest(language, codes) or language
        if code not in codes:
            raise unknown("language", code, codes, where)
        theirs[language] = code
    found = {pair: (theirs[pair.source], theirs[pair.target]) for pair in pairs}
    for pair in found.values():
        if pair not in held and pair[::-1] not in held:
            raise unknown("language pair", "-".join(pair), ["-".join(other) for other in held], where)
    return found


def _listing(names: Iterable[str]) -> str:
    first, rest = list(names)[:10], list(names)[10:]
    return ", ".join(first) + (f" and {len(rest)} more" if rest else "")
