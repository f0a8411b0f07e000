"""Learns the joint SentencePiece vocabulary of a corpus, and writes it as a fairseq dictionary too."""

from __future__ import annotations

import argparse
import io
import random
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from data_prep.steps import Stamp, add_corpus, at_least_one, command, run, say
from moe_nmt.data import Corpus, CorpusError, allot, temperature_shares
from moe_nmt.data.text import drafting, read_lines

STEP = "learn_subwords"
SETTINGS = (
    *("vocab_size", "model_type", "temperature", "sample_lines"),
    *("character_coverage", "byte_fallback", "normalization", "seed"),
)
THREADS = 16  # SentencePiece adds up by thread: a fixed number gives the same vocabulary on every machine.


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this step, none of which another step has."""
    parser.add_argument("--vocab-size", type=at_least_one, default=8000, metavar="N", help="pieces, joint")
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
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="seed of the sample")


def learn_subwords(args: argparse.Namespace) -> None:
    """Writes CORPUS/subwords; CorpusError where the raw text or the settings do not allow it."""
    corpus = Corpus.open(args.corpus)
    stamp = _stamp(corpus, args)
    if stamp.is_current():
        say(STEP, f"{corpus.model} is up to date, skipped")
        return
    for number, pair in enumerate(corpus.pairs, start=1):
        say(STEP, f"checking the text of {pair}, {number}/{len(corpus.pairs)}")
        corpus.check_text(pair)
    plan = plan_sample(corpus, args.temperature, args.sample_lines)
    say(STEP, "learning from lines of " + ", ".join(f"{language} {lines:,}" for language, lines in plan.items()))
    with stamp.renewing():
        learn(corpus, sample(corpus, plan, args.seed), args)
    say(STEP, f"wrote {corpus.model.parent}")


def _stamp(corpus: Corpus, args: argparse.Namespace) -> Stamp:
    settings = {name: value for name, value in vars(args).items() if name in SETTINGS}
    texts = [path for language in corpus.languages for path in training_texts(corpus, language)]
    outputs = corpus.model, corpus.model.with_suffix(".vocab"), corpus.dictionary
    return Stamp.of(corpus, STEP, settings, texts, outputs)


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


def learn(corpus: Corpus, lines: Iterator[str], args: argparse.Namespace) -> None:
    """Runs SentencePiece on the lines and writes the model, the vocabulary and the fairseq dictionary."""
    log = corpus.model.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    say(STEP, f"learning {args.vocab_size:,} pieces; SentencePiece writes its progress to {log}")
    try:
        with open(log, "w", encoding="utf-8") as logstream:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=lines,
                model_writer=model,
                logstream=logstream,
                vocab_size=args.vocab_size,
                model_type=args.model_type,
                character_coverage=args.character_coverage,
                byte_fallback=args.byte_fallback,
                normalization_rule_name=args.normalization,
                split_digits=True,
                num_threads=THREADS,
            )
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rpartition("] ")[2].replace("_", "-")
        raise CorpusError(f"SentencePiece learns no {args.vocab_size} pieces from this text: {reason}") from None
    write_subwords(corpus, model.getvalue())


def write_subwords(corpus: Corpus, model: bytes) -> None:
    """Writes the model, its pieces with their scores, and the dictionary, which leaves out <unk>, <s> and </s>.

    fairseq brings those three, and <pad>, itself. It uses the counts only to sort, so all are 1.
    """
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = range(processor.get_piece_size())
    with drafting(corpus.model, corpus.model.with_suffix(".vocab"), corpus.dictionary) as (spm, vocab, dictionary):
        spm.write_bytes(model)
        vocab.write_text("".join(f"{processor.id_to_piece(i)}\t{processor.get_score(i):g}\n" for i in ids), "utf-8")
        pieces = [processor.id_to_piece(i) for i in ids if not (processor.is_unknown(i) or processor.is_control(i))]
        dictionary.write_text("".join(f"{piece} 1\n" for piece in pieces), "utf-8")


def main() -> int:
    parser = command(STEP, __doc__)
    add_corpus(parser)
    add_options(parser)
    return run(parser, learn_subwords)


if __name__ == "__main__":
    raise SystemExit(main())
