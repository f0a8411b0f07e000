"""Language codes: the ways to write one language, against known values of ISO 639, BCP 47, FLORES, OPUS and NTREX."""

import pytest

from moe_nmt.data import CorpusError
from moe_nmt.data.codes import (
    FLORES,
    alpha2,
    alpha3,
    flores_code,
    is_code,
    nearest,
    same_language,
    script,
    unicode_scripts,
)

FLORES_CODES = {
    "de deu ger deu_Latn DE deu-Latn": "deu_Latn",
    "en eng eng_Latn": "eng_Latn",
    "ar ara arb": "arb_Arab",
    "zh zho chi cmn zh_cn zh-Hans zho-CN": "zho_Hans",
    "zh_tw zho_Hant zh-TW": "zho_Hant",
    "no nor nb nob": "nob_Latn",
    "nn nno": "nno_Latn",
    "sw swa swh": "swh_Latn",
    "ms msa may zsm": "zsm_Latn",
    "id in ind": "ind_Latn",
    "fa fas per pes": "pes_Arab",
    "prs": "prs_Arab",
    "ku kmr": "kmr_Latn",
    "ckb": "ckb_Arab",
    "ko kor kor_Kore": "kor_Hang",
    "ja jpn": "jpn_Jpan",
    "tl fil tgl": "tgl_Latn",
    "he iw heb": "heb_Hebr",
    "et est ekk": "est_Latn",
    "lv lav lvs": "lvs_Latn",
    "ps pus": "pbt_Arab",
    "qu que": "quy_Latn",
    "sr srp": "srp_Cyrl",
    "sr_Latn sh srp-Latn": "srp_Latn",
    "aze-Latn az": "azj_Latn",
    "mon": "khk_Cyrl",
    "pt_br": "por_Latn_BR",
    "fra-CA fr_Latn_CA": "fra_Latn_CA",
    "spa_Latn-ref2": "spa_Latn_ref2",
    "gsw_Latn-ZH": "gsw_Latn_ZH",
    "es-419": "spa_Latn_419",
    "pot": "pot",
}


@pytest.mark.parametrize(("code", "flores"), [(c, f) for codes, f in FLORES_CODES.items() for c in codes.split()])
def test_every_way_to_write_a_language_is_one_code_of_flores(code, flores):
    assert flores_code(code) == flores


def test_the_codes_of_flores_are_their_own():
    assert len(set(FLORES)) == 204
    assert [code for code in FLORES if flores_code(code) != code] == []
    assert [code for code in FLORES if nearest(code, FLORES) != code] == []


def test_the_code_without_its_script_is_enough_where_a_language_has_one_script():
    alone = [code for code in FLORES if sum(code[:3] == other[:3] for other in FLORES) == 1]
    assert len(alone) == 204 - 2 * 8
    assert [code for code in alone if flores_code(code[:3]) != code] == []


def test_parts_of_codes():
    assert [alpha3(code) for code in ("de", "zh_Hant", "arz_Arab", "fil")] == ["deu", "zho", "arz", "tgl"]
    assert [alpha2(code) for code in ("deu_Latn", "arz_Arab", "zsm", "nob", "ceb")] == ["de", "ar", "ms", "nb", None]
    assert [script(code) for code in ("de", "deu_Cyrl", "ko", "pbt", "pot")] == ["Latn", "Cyrl", "Kore", "Arab", None]


def test_scripts_as_unicode_has_them():
    assert unicode_scripts("rus") == ("Cyrl",)
    assert set(unicode_scripts("ja")) == {"Hani", "Hira", "Kana"}
    assert unicode_scripts("zho_Hans") == unicode_scripts("zho_Hant") == ("Hani",)
    assert set(unicode_scripts("ko")) == {"Hang", "Hani"}
    assert unicode_scripts("pot") == ()


def test_every_script_of_flores_is_one_of_unicode():
    regex = pytest.importorskip("regex")
    for code in FLORES:
        assert all(regex.compile(rf"\p{{sc={name}}}") for name in unicode_scripts(code))


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("deu_Latn", "de", True),
        ("zho_Hant", "zh", True),
        ("arz_Arab", "ar", True),
        ("por_Latn_BR", "pt", True),
        ("zsm_Latn", "ms", True),
        ("arz_Arab", "arb_Arab", False),
        ("ind_Latn", "zsm_Latn", False),
        ("srp_Cyrl", "srp_Latn", False),
        ("nno_Latn", "nb", False),
        ("deu_Latn", "nld_Latn", False),
    ],
)
def test_same_language(first, second, same):
    assert same_language(first, second) is same_language(second, first) is same


@pytest.mark.parametrize(
    ("code", "known", "found"),
    [
        ("deu_Latn", ["en", "de"], "de"),
        ("por_Latn", ["pt_br", "pt"], "pt"),
        ("por_Latn_BR", ["pt", "pt_br"], "pt_br"),
        ("por_Latn", ["pt_br"], "pt_br"),
        ("fra_Latn", ["fr-CA"], None),
        ("zho_Hant", ["zh", "zh_tw"], "zh_tw"),
        ("ind_Latn", ["ms"], None),
        ("srp_Latn", ["sr"], None),
        ("eng_Latn_ylt", ["eng_Latn", "eng_Latn-ylt"], "eng_Latn-ylt"),
        ("my_own", ["my-own", "en"], "my-own"),
        ("my_own", ["en"], None),
    ],
)
def test_nearest_is_the_same_language_or_none(code, known, found):
    assert nearest(code, known) == found


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("deu_Ltan", "did you mean 'deu_Latn'"),
        ("germann", "write ISO 639"),
        ("xx", "write"),
        ("", "write"),
        ("de_", "did"),
    ],
)
def test_refuses_what_is_no_code(code, hint):
    assert not is_code(code)
    with pytest.raises(CorpusError, match=f"'{code}' is no language code that is known; {hint}"):
        flores_code(code)
