"""More languages for a trained model.

Shape letters: V vocabulary, D model width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from moe_nmt.errors import UserError
from moe_nmt.surgery import SURGERY, Checkpoint, Operation

VOCABULARIES = (
    "encoder.embedding.embed_tokens.weight",
    "decoder.embedding.embed_tokens.weight",
    "decoder.output_projection.weight",
)
"""The tensors [V, D] that have a row for every symbol."""


@SURGERY.register("add_languages")
class AddLanguages(Operation):
    """Room for the tags of more languages: append them to the list of languages, and adapt the model.

    The tags of languages stand at the end of the vocabulary, in the order of the list. Their new embeddings are drawn
    as at the beginning of a training; all else stays as it is.

    Args:
        count: how many languages. seed: of the random numbers.

    Raises:
        UserError: if `count` is below 1, or the checkpoint is no Transformer of this package.
    """

    def __init__(self, *, count: int, seed: int = 1):
        if count < 1:
            raise UserError(f"count must be at least 1, not {count}.")
        self.count, self.seed = count, seed

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint:
        if any(name not in checkpoint.tensors for name in VOCABULARIES):
            raise UserError("add_languages finds no embeddings; give a checkpoint of a transformer_moe.")
        return replace(checkpoint, tensors={**checkpoint.tensors, **self.grown(checkpoint)})

    def grown(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """The tensors with more rows; those that were one stay one."""
        generator = torch.Generator().manual_seed(self.seed)
        grown: dict[str, Tensor] = {}
        for name in VOCABULARIES:
            old_VD = checkpoint.tensors[name]
            same = (other for other in grown if torch.equal(checkpoint.tensors[other], old_VD))
            twin = next(same, None)
            if twin is not None:
                grown[name] = grown[twin]
                continue
            rows = torch.randn(self.count, old_VD.shape[1], generator=generator) * old_VD.shape[1] ** -0.5
            grown[name] = torch.cat([old_VD, rows.to(old_VD.dtype)])
        return grown
