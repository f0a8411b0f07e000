"""One concept -> its phrase in one language, taken from CLDR, or nothing where CLDR has none in that language.

A content is a nested tuple ``(kind, *arguments)`` of strings and numbers, the same for all languages. This module knows
the atomic kinds; `sentences` combines them.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, time

from babel.dates import format_date, format_time, parse_pattern
from babel.numbers import format_decimal, format_percent

from .locales import Language, own_locale

Content = tuple


@dataclass(frozen=True)
class Inventory:
    """The concepts that contents are made of: CLDR codes of territories, languages, currencies, units, date fields."""

    territories: tuple[str, ...]
    languages: tuple[str, ...]
    currencies: tuple[str, ...]
    units: tuple[str, ...]
    fields: tuple[str, ...] = ("year", "month", "week", "day", "hour", "minute", "second")


_COMMON_TERRITORIES = """
AR AT AU BE BG BR CA CH CL CN CO CZ DE DK DZ EG ES ET FI FR GB GE GR HU ID IE IL IN IQ IR IT JP KE KR KZ LK MA MX MY NG
NL NO NZ PE PH PK PL PT RO RU SA SE SG TH TR TZ UA US VN ZA
"""
_COMMON_LANGUAGES = """
am ar bg bn ca cs da de el en es fa fi fr he hi hu hy id it ja ka ko my ne nl no pl pt ro ru sv sw ta th tr uk ur vi zh
"""
_COMMON_CURRENCIES = "AUD BRL CAD CHF CNY DKK EGP EUR GBP ILS INR JPY KES KRW MXN PLN RUB SEK TRY USD"
_COMMON_UNITS = """
duration-year duration-month duration-week duration-day duration-hour duration-minute duration-second
length-kilometer length-mile length-meter length-centimeter speed-kilometer-per-hour
area-square-kilometer area-square-meter volume-liter volume-milliliter
mass-kilogram mass-gram mass-milligram temperature-celsius power-watt power-kilowatt digital-megabyte digital-gigabyte
"""
_CURRENCIES_IN_USE = """
AED ARS AUD BDT BGN BRL CAD CHF CLP CNY COP CZK DKK EGP ETB EUR GBP GEL HKD HUF IDR ILS INR IQD IRR ISK JOD JPY KES KRW
KZT LBP LKR MAD MMK MXN MYR NGN NOK NPR NZD PEN PHP PKR PLN QAR RON RSD RUB SAR SEK SGD THB TND TRY TWD TZS UAH USD UYU
UZS VND ZAR
"""
_NO_COUNTRIES = {"CQ", "EU", "EZ", "QO", "UN", "XA", "XB", "ZZ"}
_UNIT_KINDS = {"area", "digital", "duration", "electric", "energy", "length", "mass", "power", "speed", "volume"}


def small_inventory() -> Inventory:
    """The most common names and units."""
    return Inventory(
        territories=tuple(_COMMON_TERRITORIES.split()),
        languages=tuple(_COMMON_LANGUAGES.split()),
        currencies=tuple(_COMMON_CURRENCIES.split()),
        units=tuple(_COMMON_UNITS.split()),
    )


def full_inventory() -> Inventory:
    """What CLDR names in English: countries, languages with a two-letter code, currencies in use, simple units."""
    english = own_locale("en")
    units = [unit for unit, forms in english._data["unit_patterns"].items() if "other" in forms.get("long", {})]
    return Inventory(
        territories=tuple(sorted(code for code in english.territories if code.isalpha() and code not in _NO_COUNTRIES)),
        languages=tuple(sorted(code for code in english.languages if len(code) == 2)),
        currencies=tuple(_CURRENCIES_IN_USE.split()),
        units=tuple(sorted(unit for unit in units if unit.split("-")[0] in _UNIT_KINDS and "person" not in unit)),
    )


INVENTORIES: dict[str, Callable[[], Inventory]] = {"small": small_inventory, "full": full_inventory}


class Phrasebook:
    """The phrases of one language, remembered once made."""

    def __init__(self, language: Language):
        self.language = language
        self.locale = own_locale(language.locale)
        self._digits = str.maketrans({str(i): chr(ord(self.locale.zero) + i) for i in range(10)})
        self._phrases: dict[Content, str | None] = {}

    def phrase(self, content: Content) -> str | None:
        """The phrase of an atomic content in this language's own words and digits, or None where CLDR has none."""
        if content not in self._phrases:
            self._phrases[content] = self._make(content)
        return self._phrases[content]

    def _make(self, content: Content) -> str | None:
        kind, *arguments = content
        try:
            text = getattr(self, f"_{kind}")(*arguments)
        except (LookupError, ValueError):
            return None
        text = tidy(text).translate(self._digits)
        return text if self.language.writes(text) else None

    def _territory(self, code: str) -> str:
        return self.locale.territories[code]

    def _language(self, code: str) -> str:
        return self.locale.languages[code]

    def _quantity(self, number: int, unit: str) -> str:
        patterns = self.locale._data["unit_patterns"][unit]
        short, long = patterns.get("short", {}), patterns.get("long", {})
        return self._counted(number, long if "other" in long else {**short, **long})

    def _money(self, number: int, currency: str) -> str:
        names = self.locale._data["currency_names_plural"].get(currency, {})
        plural = self.locale.plural_form(number)
        name = names.get(plural) or names.get("other") or self.locale.currencies[currency]
        return self._counted(number, self.locale._data["currency_unit_patterns"]).replace("{1}", name)

    def _ago(self, number: int, field: str) -> str:
        return self._counted(number, self.locale._data["date_fields"][field]["past"])

    def _later(self, number: int, field: str) -> str:
        return self._counted(number, self.locale._data["date_fields"][field]["future"])

    def _percent(self, number: int) -> str:
        return format_percent(number / 100, locale=self.locale, numbering_system="default")

    def _date(self, ordinal: int, style: str) -> str:
        return format_date(date.fromordinal(ordinal), style, locale=self.locale)

    def _month(self, ordinal: int) -> str:
        pattern = self.locale.datetime_skeletons["yMMMM"]
        return pattern.apply(date.fromordinal(ordinal), self.locale)

    def _period(self, first: int, last: int) -> str:
        """Both days must lie in one month."""
        start, end = self.locale._data["interval_formats"]["yMMMd"]["d"]
        halves = [(first, start), (last, end)]
        return "".join(
            parse_pattern(pattern).apply(date.fromordinal(ordinal), self.locale) for ordinal, pattern in halves
        )

    def _time(self, minutes: int) -> str:
        return format_time(time(*divmod(minutes, 60)), "short", locale=self.locale)

    def _counted(self, number: int, forms: dict[str, str]) -> str:
        pattern = forms.get(self.locale.plural_form(number)) or forms["other"]
        return pattern.replace("{0}", format_decimal(number, locale=self.locale, numbering_system="default"))


_INVISIBLE = "\u200b\u200e\u200f\u061c\u00ad"


def tidy(text: str) -> str:
    """``text`` in Unicode NFC, with plain single spaces, without invisible marks of direction and line breaks."""
    text = "".join(char for char in unicodedata.normalize("NFC", text) if char not in _INVISIBLE)
    return " ".join(text.split())
