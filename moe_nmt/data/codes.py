"""Language codes of ISO 639-1 and 639-3, BCP 47, FLORES, OPUS and NTREX, read as names of the same languages.

The knowledge is that of the library `langcodes` (IANA and CLDR). A code is a language, then perhaps a script (ISO
15924), a region and a variant, joined by `-` or `_`: `de`, `deu`, `deu_Latn`, `pt_br`, `zh-TW`, `eng_Latn_GB`.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from langcodes import Language, data_dicts

from moe_nmt.data.directions import CorpusError

LISTED = """
ace_Arab ace_Latn acm_Arab acq_Arab aeb_Arab afr_Latn ajp_Arab aka_Latn als_Latn amh_Ethi apc_Arab arb_Arab arb_Latn
ars_Arab ary_Arab arz_Arab asm_Beng ast_Latn awa_Deva ayr_Latn azb_Arab azj_Latn bak_Cyrl bam_Latn ban_Latn bel_Cyrl
bem_Latn ben_Beng bho_Deva bjn_Arab bjn_Latn bod_Tibt bos_Latn bug_Latn bul_Cyrl cat_Latn ceb_Latn ces_Latn cjk_Latn
ckb_Arab crh_Latn cym_Latn dan_Latn deu_Latn dik_Latn dyu_Latn dzo_Tibt ell_Grek eng_Latn epo_Latn est_Latn eus_Latn
ewe_Latn fao_Latn fij_Latn fin_Latn fon_Latn fra_Latn fur_Latn fuv_Latn gaz_Latn gla_Latn gle_Latn glg_Latn grn_Latn
guj_Gujr hat_Latn hau_Latn heb_Hebr hin_Deva hne_Deva hrv_Latn hun_Latn hye_Armn ibo_Latn ilo_Latn ind_Latn isl_Latn
ita_Latn jav_Latn jpn_Jpan kab_Latn kac_Latn kam_Latn kan_Knda kas_Arab kas_Deva kat_Geor kaz_Cyrl kbp_Latn kea_Latn
khk_Cyrl khm_Khmr kik_Latn kin_Latn kir_Cyrl kmb_Latn kmr_Latn knc_Arab knc_Latn kon_Latn kor_Hang lao_Laoo lij_Latn
lim_Latn lin_Latn lit_Latn lmo_Latn ltg_Latn ltz_Latn lua_Latn lug_Latn luo_Latn lus_Latn lvs_Latn mag_Deva mai_Deva
mal_Mlym mar_Deva min_Arab min_Latn mkd_Cyrl mlt_Latn mni_Beng mos_Latn mri_Latn mya_Mymr nld_Latn nno_Latn nob_Latn
npi_Deva nso_Latn nus_Latn nya_Latn oci_Latn ory_Orya pag_Latn pan_Guru pap_Latn pbt_Arab pes_Arab plt_Latn pol_Latn
por_Latn prs_Arab quy_Latn ron_Latn run_Latn rus_Cyrl sag_Latn san_Deva sat_Beng scn_Latn shn_Mymr sin_Sinh slk_Latn
slv_Latn smo_Latn sna_Latn snd_Arab som_Latn sot_Latn spa_Latn srd_Latn srp_Cyrl ssw_Latn sun_Latn swe_Latn swh_Latn
szl_Latn tam_Taml taq_Latn taq_Tfng tat_Cyrl tel_Telu tgk_Cyrl tgl_Latn tha_Thai tir_Ethi tpi_Latn tsn_Latn tso_Latn
tuk_Latn tum_Latn tur_Latn twi_Latn tzm_Tfng uig_Arab ukr_Cyrl umb_Latn urd_Arab uzn_Latn vec_Latn vie_Latn war_Latn
wol_Latn xho_Latn ydd_Hebr yor_Latn yue_Hant zho_Hans zho_Hant zsm_Latn zul_Latn
"""
FLORES = tuple(LISTED.split())
"""The languages of FLORES-200 (NLLB team 2022), by their codes there."""

ALPHA3: dict[str, str] = data_dicts.LANGUAGE_ALPHA3
WITHDRAWN = data_dicts.LANGUAGE_REPLACEMENTS.keys() - {"tl"}
ALPHA2 = {three: two for two, three in ALPHA3.items() if len(two) == 2 and two not in WITHDRAWN}
MODERN = {old: new for old, new in data_dicts.LANGUAGE_REPLACEMENTS.items() if len(old) == len(new) == 2}
MODERN |= {three: two for two, three in data_dicts.LANGUAGE_ALPHA3_BIBLIOGRAPHIC.items()}
MODERN |= {"fil": "tl", "sh": "sr-Latn", "hbs": "sr-Latn"}
"""What withdrawn and bibliographic codes are today; Filipino is called Tagalog, as in FLORES."""
PREDOMINANT = {**data_dicts.NORMALIZED_MACROLANGUAGES, "nb": "no"}
"""The macro-language that a language is usually meant by: arb by ar, cmn by zh (CLDR), Bokmål by Norwegian."""
UNICODE_SCRIPTS = {
    "Aran": ("Arab",),
    "Cyrs": ("Cyrl",),
    "Hanb": ("Hani", "Bopo"),
    "Hans": ("Hani",),
    "Hant": ("Hani",),
    "Hrkt": ("Hira", "Kana"),
    "Jpan": ("Hani", "Hira", "Kana"),
    "Kore": ("Hang", "Hani"),
    "Latf": ("Latn",),
    "Latg": ("Latn",),
}
"""Scripts of ISO 15924 that Unicode knows as another script, or as several."""


@dataclass(frozen=True)
class Code:
    """What a language code says: the language by ISO 639-3, and script, region and variant where it names them."""

    language: str
    script: str | None = None
    region: str | None = None
    variant: str | None = None

    def likely(self) -> Code:
        """This code with the likeliest script and region of its language where it names none (CLDR)."""
        family = (_shortest(self.language), _macro(self.language))
        known = next((name for name in family if name in data_dicts.LIKELY_SUBTAGS), None)
        if known is None:
            return self
        full = Language.make(known, script=self.script, territory=self.region).maximize()
        return replace(self, script=full.script, region=full.territory)


@functools.lru_cache(maxsize=4096)
def canonical(code: Code) -> Code:
    """The same for all ways to write one language: the language of FLORES, likely script and region."""
    full = replace(code, language=_flores_language(code.language)).likely()
    return replace(full, script={"Kore": "Hang"}.get(full.script or "", full.script))


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Code:
    """Reads a language code; CorpusError, with the nearest code that exists, where the library does not know it."""
    language, *rest = re.split("[-_]", text)
    language, *implied = MODERN.get(language.lower(), language.lower()).split("-")
    code = Code(_alpha3(language))
    for part in dict.fromkeys(implied + rest):
        if code == Code(code.language) and _is_script(part):
            code = replace(code, script=part.title())
        elif code.region is code.variant is None and _is_region(part):
            code = replace(code, region=part.upper())
        elif code.variant is None and part.isalnum() and (code.script or len(part) != 4):
            code = replace(code, variant=part)
        else:
            raise _no_code(text)
    if not Language.make(_shortest(code.language)).is_valid():
        raise _no_code(text)
    return code


def is_code(text: str) -> bool:
    """Whether the library knows the code."""
    try:
        return parse(text) is not None
    except CorpusError:
        return False


def alpha3(code: str) -> str:
    """The language by ISO 639-3: `deu` for `de`, `zho` for `zh_Hant`; CorpusError for what is no code."""
    return parse(code).language


def alpha2(code: str) -> str | None:
    """The language by ISO 639-1, or else the macro-language it belongs to: `de` for `deu_Latn`, `ar` for `arz_Arab`."""
    language = parse(code).language
    return ALPHA2.get(language) or ALPHA2.get(_alpha3(_macro(language)))


def script(code: str) -> str | None:
    """The script by ISO 15924, that of the code or else the likeliest; None where the library knows none."""
    return parse(code).likely().script


def unicode_scripts(code: str) -> tuple[str, ...]:
    """The scripts whose letters the language is written with, by their short names in Unicode (`\\p{sc=Latn}`).

    Japanese has several, both Chinese scripts are `Hani`; empty where the script is not known.
    """
    name = script(code)
    return UNICODE_SCRIPTS.get(name, (name,)) if name else ()


def same_language(first: str, second: str) -> bool:
    """Whether two codes can mean the same language: one may be the other's macro-language, and name more than it.

    Regions and variants do not matter, scripts only where both codes name one.
    """
    ours, theirs = parse(first), parse(second)
    scripts = {ours.script, theirs.script} - {None}
    families = [{code.language, _alpha3(_macro(code.language))} for code in (ours, theirs)]
    return len(scripts) < 2 and (ours.language in families[1] or theirs.language in families[0])


def flores_code(code: str) -> str:
    """The code as FLORES writes it: `deu_Latn` for `de`, `arb_Arab` for `ar`, `zho_Hant` for `zh-TW`.

    A region or variant that the code names stays at its end: `por_Latn_BR` for `pt_br`. CorpusError for what is no
    code.
    """
    said, full = parse(code), canonical(parse(code))
    scripts = [name[4:] for name in FLORES if name.startswith(f"{full.language}_")]
    if said.script is None and len(scripts) == 1:
        full = replace(full, script=scripts[0])
    told_by_script = len(scripts) > 1 and said.region == canonical(Code(full.language, full.script)).region
    region = None if told_by_script else said.region
    return "_".join(part for part in (full.language, full.script, region, said.variant) if part)


def nearest(code: str, known: Iterable[str]) -> str | None:
    """The one of the known codes that means just this language: same script, region and variant, however it is written.

    What a code leaves open is taken for the likeliest: `pt` is `pt_br`, but `fr` is not `fr-CA`. None where no code
    is.
    """
    known = list(known)
    spelt = {_spelling(name): name for name in reversed(known)}
    if _spelling(code) in spelt:
        return spelt[_spelling(code)]
    if not is_code(code):
        return None
    said = parse(code)
    same = [name for name in known if is_code(name) and canonical(parse(name)) == canonical(said)]
    return min(same, key=lambda name: parse(name).region != said.region, default=None)


def _is_script(part: str) -> bool:
    return len(part) == 4 and part.title() in data_dicts.ALL_SCRIPTS


def _is_region(part: str) -> bool:
    return bool(re.fullmatch("[A-Za-z]{2}|[0-9]{3}", part)) and Language.make(territory=part.upper()).is_valid()


def _spelling(code: str) -> str:
    return code.replace("-", "_").lower()


def _no_code(text: str) -> CorpusError:
    languages = {name[:3] for name in FLORES}
    near = difflib.get_close_matches(text, [*FLORES, *ALPHA3, *sorted(languages)], n=1, cutoff=0.7)
    hint = f"did you mean '{near[0]}'? Write" if near else "write"
    return CorpusError(
        f"'{text}' is no language code that is known; {hint} ISO 639 and perhaps a script, like deu_Latn"
    )


def _alpha3(language: str) -> str:
    return ALPHA3.get(language, language)


def _shortest(language: str) -> str:
    """As BCP 47 and the library write it: ISO 639-1 where there is one."""
    return ALPHA2.get(language, language)


def _macro(language: str) -> str:
    """The macro-language of ISO 639-3 that a language belongs to, in its shortest form; else the language."""
    short = _shortest(language)
    return data_dicts.MACROLANGUAGES.get(short) or PREDOMINANT.get(short, short)


@functools.cache
def _flores_language(language: str) -> str:
    """The language of FLORES that this is, or that is usually meant by it; the language itself where there is none."""
    known = dict.fromkeys(name[:3] for name in FLORES)
    usual = _alpha3(PREDOMINANT.get(_shortest(language), ""))
    for name in (language, usual):
        if name in known:
            return name
    members = [name for name in known if _macro(name) == _shortest(language)]
    predominant = [name for name in members if PREDOMINANT.get(_shortest(name)) == _shortest(language)]
    choice = predominant or members
    return choice[0] if len(choice) == 1 else language
