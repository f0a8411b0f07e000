"""Learns the joint subwords of a corpus, and writes the fairseq dictionary of them and of the tags of data."""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_prep.corpora import open_corpora
from data_prep.steps import Stamp, add_corpus, at_least_one, command, run, say
from data_prep.subwords import fastbpe, sentence_pieces
from data_prep.subwords.symbols import FAIRSEQ, data_tag, language_tag, parse_kinds
from moe_nmt.data import MAIN, Corpus, CorpusError, allot, temperature_shares
from moe_nmt.data.text import drafting, read_lines

STEP = "learn_subwords"
OF_SENTENCEPIECE = {
    "model_type": "unigram",
    "character_coverage": 1.0,
    "byte_fallback": False,
    "normalization": "identity",
}
SETTINGS = ("bpe", "vocab_size", "temperature", "sample_lines", "seed", *OF_SENTENCEPIECE)
FILES = {"sentencepiece": ("spm.model", "spm.vocab"), "fastbpe": ("bpe.codes", "bpe.vocab")}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this step, none of which another step has."""
    parser.add_argument("--bpe", choices=FILES, default="sentencepiece", help="what cuts text: raw text, or words")
    parser.add_argument(
        "--vocab-size", type=at_least_one, default=8000, metavar="N", help="pieces, joint; of fastbpe, merges"
    )
    parser.add_argument("--model-type", choices=("unigram", "bpe"), default="unigram", help="how pieces are learnt")
    parser.add_argument(
        "--temperature",
        type=float,
        default=5.0,
        metavar="T",
        help="how far small languages are raised in the text learnt from: 1 not at all, inf all languages equal",
    )
    parser.add_argument("--sample-lines", type=at_least_one, default=2_000_000, metavar="N", help="lines to learn from")
    parser.add_argument(
        "--character-coverage", type=float, default=1.0, metavar="SHARE", help="share of the characters to keep"
    )
    parser.add_argument("--byte-fallback", action="store_true", help="spell unknown characters in bytes, never <unk>")
    parser.add_argument(
        "--normalization",
        choices=("identity", "nfkc", "nmt_nfkc"),
        default="identity",
        help="SentencePiece's rule; NFKC folds full-width signs, so that no translation into Chinese or Japanese can "
        "equal a reference as it is written",
    )
    parser.add_argument(
        "--data-tags",
        default="",
        metavar="KIND,…",
        help="kinds of data to reserve tags for, beside those in CORPUS/extra",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="seed of the sample")


def learn_subwords(args: argparse.Namespace) -> None:
    """Writes CORPUS/subwords; CorpusError where the raw text or the settings do not allow it."""
    corpora = open_corpora(args.corpus)
    corpus = corpora.pop(MAIN)
    check_options(args)
    tags = [data_tag(kind) for kind in dict.fromkeys([*corpora, *parse_kinds(args.data_tags)])]
    stamp = _stamp(corpus, args, tags)
    if stamp.is_current():
        say(STEP, f"{stamp.outputs[0]} is up to date, skipped")
        return
    for number, pair in enumerate(corpus.pairs, start=1):
        say(STEP, f"checking the text of {pair}, {number}/{len(corpus.pairs)}")
        corpus.check_text(pair)
    plan = plan_sample(corpus, args.temperature, args.sample_lines)
    say(STEP, "learning from lines of " + ", ".join(f"{language} {lines:,}" for language, lines in plan.items()))
    with stamp.renewing():
        corpus.subwords.mkdir(exist_ok=True)
        for name in (name for bpe, names in FILES.items() if bpe != args.bpe for name in names):
            (corpus.subwords / name).unlink(missing_ok=True)
        learn = {"sentencepiece": learn_sentencepiece, "fastbpe": learn_fastbpe}[args.bpe]
        learn(corpus, sample(corpus, plan, args.seed), tags, args)
    say(STEP, f"wrote {corpus.subwords}")


def check_options(args: argparse.Namespace) -> None:
    """CorpusError for an option that the kind of subwords does not have."""
    for name, default in OF_SENTENCEPIECE.items():
        if args.bpe == "fastbpe" and getattr(args, name) != default:
            raise CorpusError(f"--{name.replace('_', '-')} is of --bpe sentencepiece: leave it out with --bpe fastbpe")


def _stamp(corpus: Corpus, args: argparse.Namespace, tags: list[str]) -> Stamp:
    settings = {name: value for name, value in vars(args).items() if name in SETTINGS}
    texts = [path for language in corpus.languages for path in training_texts(corpus, language)]
    outputs = [corpus.subwords / name for name in (*FILES[args.bpe], "dict.txt")]
    return Stamp.of(corpus, STEP, settings | {"tags": tags}, texts, outputs)


def training_texts(corpus: Corpus, language: str) -> dict[Path, int]:
    """The training files of a language over all its pairs, with their numbers of lines."""
    pairs = [pair for pair in corpus.pairs if language in (pair.source, pair.target) and "train" in corpus.splits(pair)]
    return {corpus.text("raw", "train", pair, language): corpus.pair_counts(pair)["train"] for pair in pairs}


def plan_sample(corpus: Corpus, temperature: float, limit: int) -> dict[str, int]:
    """How many lines to learn from per language: as many as there are in all, `limit` at most, by temperature."""
    counts = {language: sum(training_texts(corpus, language).values()) for language in corpus.languages}
    if not any(counts.values()):
        raise CorpusError(f"{corpus.folder} has no training text to learn subwords from: add a pair with some")
    try:
        shares = temperature_shares(counts, temperature)
    except ValueError as error:
        raise CorpusError(str(error)) from None
    return allot(shares, min(sum(counts.values()), limit))


def sample(corpus: Corpus, plan: dict[str, int], seed: int) -> Iterator[str]:
    """The lines to learn from: a language short of text is repeated, one with too much is drawn from by chance."""
    for language, wanted in plan.items():
        texts = training_texts(corpus, language)
        available = sum(texts.values())
        repeats, rest = divmod(wanted, available) if available else (0, 0)
        drawn = set(random.Random(f"{seed} {language}").sample(range(available), rest))
        lines = (line for path in texts for line in read_lines(path))
        for number, line in enumerate(lines):
            yield from [line] * (repeats + (number in drawn))


def learn_sentencepiece(corpus: Corpus, lines: Iterator[str], tags: list[str], args: argparse.Namespace) -> None:
    """Writes the model, its pieces with their scores, and the dictionary."""
    log = corpus.subwords / "spm.log"
    say(STEP, f"learning {args.vocab_size:,} pieces; SentencePiece writes its progress to {log}")
    model = sentence_pieces.learn(lines, reserved(corpus, tags), log, args)
    pieces, scores = sentence_pieces.vocabulary(model)
    with drafting(*(corpus.subwords / name for name in FILES["sentencepiece"]), corpus.dictionary) as drafts:
        drafts[0].write_bytes(model)
        drafts[1].write_text(scores, "utf-8")
        drafts[2].write_text(dictionary(pieces, tags), "utf-8")


def learn_fastbpe(corpus: Corpus, lines: Iterator[str], tags: list[str], args: argparse.Namespace) -> None:
    """Writes the codes, the pieces with their counts, and the dictionary."""
    words = Counter(word for line in lines for word in line.split())
    say(STEP, f"learning {args.vocab_size:,} merges from {len(words):,} different words")
    with drafting(*(corpus.subwords / name for name in FILES["fastbpe"]), corpus.dictionary) as drafts:
        drafts[0].write_text(fastbpe.learn(words, args.vocab_size), "utf-8")
        counts = fastbpe.vocabulary(words, drafts[0], reserved(corpus, tags))
        drafts[1].write_text("".join(f"{piece} {count}\n" for piece, count in counts.items()), "utf-8")
        drafts[2].write_text(dictionary(counts, tags), "utf-8")


def reserved(corpus: Corpus, tags: Iterable[str]) -> list[str]:
    """What no text may be cut into: fairseq's own symbols, and the tags of languages and data."""
    return [*FAIRSEQ, *map(language_tag, corpus.languages), *tags]


def dictionary(pieces: Iterable[str], tags: Iterable[str]) -> str:
    """The pieces and the tags of data as fairseq reads them. It uses the counts only to sort, so all are 1."""
    return "".join(f"{symbol} 1\n" for symbol in (*pieces, *tags))


def main() -> int:
    parser = command(STEP, __doc__)
    add_corpus(parser)
    add_options(parser)
    return run(parser, learn_subwords)


if __name__ == "__main__":
    raise SystemExit(main())
