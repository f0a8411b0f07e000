"""Corpora and how they are sampled: standard library only, so that reading a corpus never loads torch or fairseq."""

from moe_nmt.data.corpus import MAIN, SPLITS, Corpus
from moe_nmt.data.directions import CorpusError, Direction, check_code, is_english, parse_directions
from moe_nmt.data.sampling import allot, temperature_shares

__all__ = [
    "MAIN",
    "SPLITS",
    "Corpus",
    "CorpusError",
    "Direction",
    "allot",
    "check_code",
    "is_english",
    "parse_directions",
    "temperature_shares",
]
