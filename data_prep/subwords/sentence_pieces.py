"""SentencePiece: pieces of raw text, spaces included."""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece

from moe_nmt.data import CorpusError

OWN = ("<unk>", "<s>", "</s>")
THREADS = 16  # SentencePiece adds up by thread: a fixed number gives the same vocabulary on every machine.


class SentencePiece:
    """Cuts lines by a SentencePiece model."""

    def __init__(self, model: Path):
        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        self.pieces = [self.processor.id_to_piece(number) for number in range(self.processor.get_piece_size())]

    def encode(self, lines: Sequence[str]) -> list[list[str]]:
        """The pieces of each line; a run of unknown characters is one `<unk>`."""
        pieces = self.pieces
        return [[pieces[i] for i in ids] for ids in self.processor.encode(list(lines), out_type=int, num_threads=1)]


def learn(lines: Iterator[str], reserved: Sequence[str], log: Path, args: argparse.Namespace) -> bytes:
    """Learn `args.vocab_size` pieces, <unk>, <s> and </s> among them, and add the other reserved symbols.

    These are control symbols: text that holds them literally is cut into other pieces. CorpusError where the text does
    not give so many pieces.
    """
    controls = [symbol for symbol in reserved if symbol not in OWN]
    model = io.BytesIO()
    try:
        with open(log, "w", encoding="utf-8") as logstream:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=lines,
                model_writer=model,
                logstream=logstream,
                vocab_size=args.vocab_size + len(controls),
                control_symbols=controls,
                model_type=args.model_type,
                character_coverage=args.character_coverage,
                byte_fallback=args.byte_fallback,
                normalization_rule_name=args.normalization,
                split_digits=True,
                num_threads=THREADS,
            )
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rpartition("] ")[2].replace("_", "-")
        if reason.startswith("Vocabulary size"):
            reason = re.sub(r"\d+", lambda number: str(int(number[0]) - len(controls)), reason)
        raise CorpusError(f"SentencePiece learns no {args.vocab_size} pieces from this text: {reason}") from None
    return model.getvalue()


def vocabulary(model: bytes) -> tuple[list[str], str]:
    """The pieces that stand for text, in order; and all pieces with their scores, a line each."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = range(processor.get_piece_size())
    pieces = [processor.id_to_piece(i) for i in ids if not (processor.is_unknown(i) or processor.is_control(i))]
    return pieces, "".join(f"{processor.id_to_piece(i)}\t{processor.get_score(i):g}\n" for i in ids)
