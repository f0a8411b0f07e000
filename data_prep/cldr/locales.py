"""The languages of the embedded corpus, and their CLDR data without anybody else's words in it."""

import difflib
import pickle
import unicodedata
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from babel import Locale, UnknownLocaleError, localedata
from babel.core import get_global
from babel.dates import DateTimePattern

from moe_nmt.data import CorpusError

# ISO 639-3 code (with a script where the language needs one) -> CLDR locale and ISO 15924 script.
_TABLE = """
eng en Latn | afr af Latn | als sq Latn | amh am Ethi | arb ar Arab | asm as Beng | azj az Latn | bel be Cyrl
ben bn Beng | bos bs Latn | bre br Latn | bul bg Cyrl | cat ca Latn | ces cs Latn | dan da Latn | deu de Latn
ell el Grek | epo eo Latn | est et Latn | eus eu Latn | fao fo Latn | fas fa Arab | fin fi Latn | fra fr Latn
fry fy Latn | gla gd Latn | gle ga Latn | glg gl Latn | guj gu Gujr | hau ha Latn | heb he Hebr | hin hi Deva
hrv hr Latn | hun hu Latn | hye hy Armn | ind id Latn | isl is Latn | ita it Latn | jav jv Latn | jpn ja Jpan
kan kn Knda | kat ka Geor | kaz kk Cyrl | khk mn Cyrl | khm km Khmr | kir ky Cyrl | kor ko Kore | lao lo Laoo
lav lv Latn | lit lt Latn | mal ml Mlym | mar mr Deva | mkd mk Cyrl | mya my Mymr | nld nl Latn | nob no Latn
npi ne Deva | ory or Orya | pan pa Guru | pol pl Latn | por pt Latn | ron ro Latn | rus ru Cyrl | sin si Sinh
slk sk Latn | slv sl Latn | som so Latn | spa es Latn | srp_Cyrl sr Cyrl | srp_Latn sr_Latn Latn | swe sv Latn
swh sw Latn | tam ta Taml | tel te Telu | tgk tg Cyrl | tha th Thai | tir ti Ethi | tuk tk Latn | tur tr Latn
ukr uk Cyrl | urd ur Arab | uzn uz Latn | vie vi Latn | zho_Hans zh Hans | zho_Hant zh_Hant Hant | zsm ms Latn
"""

# ISO 15924 script -> the first words of the Unicode names of its letters.
_LETTERS = {
    "Arab": ("ARABIC",), "Armn": ("ARMENIAN",), "Beng": ("BENGALI",), "Cyrl": ("CYRILLIC",), "Deva": ("DEVANAGARI",),
    "Ethi": ("ETHIOPIC",), "Geor": ("GEORGIAN",), "Grek": ("GREEK",), "Gujr": ("GUJARATI",), "Guru": ("GURMUKHI",),
    "Hans": ("CJK",), "Hant": ("CJK",), "Hebr": ("HEBREW",), "Jpan": ("CJK", "HIRAGANA", "KATAKANA"),
    "Khmr": ("KHMER",), "Knda": ("KANNADA",), "Kore": ("HANGUL",), "Laoo": ("LAO",), "Latn": ("LATIN",),
    "Mlym": ("MALAYALAM",), "Mymr": ("MYANMAR",), "Orya": ("ORIYA",), "Sinh": ("SINHALA",), "Taml": ("TAMIL",),
    "Telu": ("TELUGU",), "Thai": ("THAI",),
}  # fmt: skip

# CLDR numbering system -> its digit zero; the other nine follow it in Unicode.
_ZEROS = {"arab": "\u0660", "arabext": "\u06f0", "beng": "\u09e6", "deva": "\u0966", "mymr": "\u1040"}

# Root data without words of any language: needed for numbers, harmless in text.
_WORDLESS_SECTIONS = {"default_numbering_system", "number_symbols", "numbering_systems", "locale_id", "character_order"}


@dataclass(frozen=True)
class Language:
    """One language of the corpus: its code, its CLDR locale, its ISO 15924 script and its English name."""

    code: str
    locale: str
    script: str

    @property
    def name(self) -> str:
        return Locale.parse(self.locale).get_display_name("en")

    def writes(self, text: str) -> bool:
        """Whether all letters of ``text`` are of this language's script."""
        letters = (char for char in text if unicodedata.category(char) in ("Lu", "Ll", "Lo"))
        return all(unicodedata.name(char).startswith(_LETTERS[self.script]) for char in letters)


LANGUAGES: dict[str, Language] = {
    row.split()[0]: Language(*row.split()) for line in _TABLE.strip().splitlines() for row in line.split(" | ")
}


def find_language(code: str) -> Language:
    """The language of a code. Raises `CorpusError`, naming the nearest known code."""
    if code in LANGUAGES:
        return LANGUAGES[code]
    raise CorpusError(
        f"no language has the code '{code}'; did you mean '{_nearest(code)}'? The option --list shows all."
    )


def _nearest(code: str) -> str:
    alias = get_global("language_aliases").get(code, code).lower()
    for language in LANGUAGES.values():
        if alias in (language.locale.lower(), language.name.lower()):
            return language.code
    prefixes = [known for known in LANGUAGES if known[:3].lower() == code[:3].lower()]
    return prefixes[0] if prefixes else difflib.get_close_matches(code.lower(), LANGUAGES, n=1, cutoff=0.0)[0]


class OwnLocale(Locale):
    """A CLDR locale that holds only what its own language says.

    Babel fills gaps from the root locale (``M12``, ``3 d``), and some locales from another language. Here a gap stays a
    gap: looking it up, directly or through a Babel formatter, raises `KeyError`. Root patterns without words, such as
    ``{0} {1}`` or ``HH:mm``, remain, since CLDR leaves them out of every locale that shares them; the comma that stands
    in for 'and' does not.
    """

    @cached_property
    def _data(self) -> localedata.LocaleDataDict:
        data = _wordless(_stored_data("root"))
        data["list_patterns"]["standard"] = {key: "{0}, {1}" for key in ("start", "middle")}
        for name in reversed(_own_chain(str(self))):
            localedata.merge(data, _stored_data(name))
        return localedata.LocaleDataDict(data)

    @property
    def zero(self) -> str:
        """The digit zero of the locale's default numbering system."""
        return _ZEROS.get(self.default_numbering_system, "0")


@cache
def own_locale(name: str) -> OwnLocale:
    """The `OwnLocale` of a CLDR name such as ``zh_Hant``. Raises `babel.UnknownLocaleError` for a name CLDR lacks."""
    if not localedata.exists(name):
        raise UnknownLocaleError(name)
    language, _, script = name.partition("_")
    return OwnLocale(language, script=script or None)


def _own_chain(name: str) -> list[str]:
    """The locale and those of its ancestors that are the same language in the same script, nearest first."""
    parent = get_global("parent_exceptions").get(name)
    return [name, *_own_chain(parent)] if parent and parent.split("_")[0] == name.split("_")[0] else [name]


def _stored_data(name: str) -> dict[str, Any]:
    """What CLDR stores for this very locale. (`localedata.load` answers from a cache that mixes in inherited data.)"""
    with open(localedata.resolve_locale_filename(name), "rb") as file:
        return pickle.load(file)


def _wordless(data: dict[Any, Any]) -> dict[Any, Any]:
    """Root data without the entries that hold words of a language, or their order."""
    kept = {}
    for key, entry in data.items():
        if isinstance(entry, dict) and key not in _WORDLESS_SECTIONS:
            kept[key] = _wordless(entry)
        elif key in _WORDLESS_SECTIONS or not _has_words(entry):
            kept[key] = entry
    return kept


def _has_words(entry: Any) -> bool:
    if isinstance(entry, DateTimePattern):
        return not set(entry.pattern) <= set("Hms:")
    if isinstance(entry, str):
        return any(char.isalpha() for char in entry.replace("%s", "").replace(")s", ""))
    return isinstance(entry, list)
