"""Contents of whole sentences: how they are drawn, and how they read in a language."""

import re
from collections.abc import Callable
from datetime import date
from random import Random

from babel.lists import format_list

from .phrases import Content, Inventory, Phrasebook, tidy

_FIRST_DAY, _LAST_DAY = date(2000, 1, 1).toordinal(), date(2029, 12, 31).toordinal()


def draw(rng: Random, inventory: Inventory) -> Content:
    """A random content: a heading and what is said under it, or a list, or a day and its hour."""
    return _one_of(rng, inventory, _SENTENCES)


def render(content: Content, book: Phrasebook) -> str | None:
    """The sentence of a content in the book's language; None if any part of it is missing there."""
    kind, *parts = content
    if kind not in _GLUE:
        return book.phrase(content)
    texts = [render(part, book) for part in parts]
    if None in texts:
        return None
    try:
        return tidy(_GLUE[kind](book, *texts))
    except (LookupError, ValueError):
        return None


def _one_of(rng: Random, inventory: Inventory, makers: "_Makers") -> Content:
    return rng.choices(list(makers), list(makers.values()))[0](rng, inventory)


def _number(rng: Random) -> int:
    return rng.choice((rng.randint(1, 9), rng.randint(1, 99), 100 * rng.randint(1, 99)))


def _territory(rng: Random, inventory: Inventory) -> Content:
    return "territory", rng.choice(inventory.territories)


def _language(rng: Random, inventory: Inventory) -> Content:
    return "language", rng.choice(inventory.languages)


def _variety(rng: Random, inventory: Inventory) -> Content:
    return "detailed", _language(rng, inventory), _territory(rng, inventory)


def _quantity(rng: Random, inventory: Inventory) -> Content:
    return "quantity", _number(rng), rng.choice(inventory.units)


def _money(rng: Random, inventory: Inventory) -> Content:
    return "money", _number(rng), rng.choice(inventory.currencies)


def _relative(rng: Random, inventory: Inventory) -> Content:
    return rng.choice(("ago", "later")), rng.randint(1, 59), rng.choice(inventory.fields)


def _percent(rng: Random, inventory: Inventory) -> Content:
    return "percent", rng.randint(1, 100)


def _day(rng: Random, inventory: Inventory) -> Content:
    return "date", rng.randint(_FIRST_DAY, _LAST_DAY), rng.choice(("full", "long"))


def _month(rng: Random, inventory: Inventory) -> Content:
    return "month", date.fromordinal(rng.randint(_FIRST_DAY, _LAST_DAY)).replace(day=1).toordinal()


def _period(rng: Random, inventory: Inventory) -> Content:
    month = date(rng.randint(2000, 2029), rng.randint(1, 12), 1).toordinal() - 1
    first, last = sorted(rng.sample(range(1, 29), 2))
    return "period", month + first, month + last


def _hour(rng: Random, inventory: Inventory) -> Content:
    return "time", 5 * rng.randrange(288)


def _moment(rng: Random, inventory: Inventory) -> Content:
    return "moment", _day(rng, inventory), _hour(rng, inventory)


def _entry(rng: Random, inventory: Inventory) -> Content:
    return "entry", _one_of(rng, inventory, _HEADINGS), _one_of(rng, inventory, _BODIES)


def _items(rng: Random, make: Callable[[], Content], least: int) -> Content:
    """An and- or or-list of ``least`` to 3 different contents; a list of one is the content itself."""
    wanted, items = rng.randint(least, 3), []
    while len(items) < wanted:
        item = make()
        if item not in items:
            items.append(item)
    return (rng.choice(("and", "or")), *items) if wanted > 1 else items[0]


def _names(rng: Random, inventory: Inventory) -> Content:
    maker = rng.choice((_territory, _language, _variety))
    return _items(rng, lambda: maker(rng, inventory), least=2)


def _amounts(rng: Random, inventory: Inventory) -> Content:
    maker = rng.choice((_quantity, _money))
    return _items(rng, lambda: maker(rng, inventory), least=1)


_Makers = dict[Callable[[Random, Inventory], Content], int]  # maker -> weight
_SENTENCES: _Makers = {_entry: 7, _names: 2, _moment: 1}
_HEADINGS: _Makers = {_territory: 4, _language: 2, _variety: 3, _day: 2, _month: 1, _relative: 3}
_BODIES: _Makers = {
    _amounts: 5,
    _names: 3,
    _relative: 3,
    _day: 2,
    _period: 2,
    _moment: 1,
    _month: 1,
    _percent: 1,
}


def _listed(book: Phrasebook, items: list[str], style: str) -> str:
    text = format_list(items, style, locale=book.locale)
    for pattern, replacement in _EUPHONY.get(book.locale.language, ()):
        text = re.sub(pattern, replacement, text, flags=re.IGNORECASE)
    return text


# What a list pattern cannot say because it depends on the next item; as in ICU's list formatter.
_EUPHONY = {
    "es": ((r" y (?=h?[ií](?![ae]))", " e "), (r" o (?=h?[oó]|8|11\b)", " u ")),
    "he": ((r" ו(?=[^א-ת])", " ו-"),),
}


def _moment_text(book: Phrasebook, day: str, hour: str) -> str:
    return book.locale.datetime_formats["long"].replace("{1}", day).replace("{0}", hour)


def _detailed_text(book: Phrasebook, name: str, detail: str) -> str:
    """CLDR's pattern for a name with its detail in parentheses; Greek wraps it in brackets for time zones only."""
    return (book.locale.zone_formats["fallback"] % {"1": name, "0": detail}).strip("[]")


_GLUE: dict[str, Callable[..., str]] = {
    "entry": lambda book, heading, body: f"{heading}: {body}",
    "and": lambda book, *items: _listed(book, list(items), "standard"),
    "or": lambda book, *items: _listed(book, list(items), "or"),
    "moment": _moment_text,
    "detailed": _detailed_text,
}
