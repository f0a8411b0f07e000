"""Surgery: operations on a trained model, checkpoint to checkpoint, composed left to right. One file, one operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from moe_nmt.adapters import ADAPTERS, ADAPTERS_PREFIX
from moe_nmt.registry import Registry, Spec, parse


@dataclass(frozen=True)
class Checkpoint:
    """A trained model.

    `tensors`: its state, by name. `options`: the model's, by fairseq's names (`encoder_layers`, `adapters` …).
    `directions`: those it was trained on, as `source-target`. `history`: the operations done to it, the oldest first.
    """

    tensors: Mapping[str, Tensor]
    options: Mapping[str, Any]
    directions: Sequence[str] = ()
    history: Sequence[str] = ()

    @property
    def adapters(self) -> Spec | None:
        """The spec of its adapters, None if it has none."""
        text = self.options.get("adapters")
        return parse(text) if text else None

    def with_adapters(self, spec: Spec, tensors: Mapping[str, Tensor]) -> Checkpoint:
        """The same model with these adapters in the place of those that it has."""
        return replace(
            self,
            tensors={**split_adapters(self.tensors)[0], **tensors},
            options={**self.options, "adapters": str(spec)},
        )


class Operation:
    """The contract of every operation. What is given stays as it is; tensors that do not change may be shared."""

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint:
        """The changed model, its history aside.

        Raises:
            UserError: if the operation cannot be done to this model.
        """
        raise NotImplementedError


SURGERY: Registry[Operation] = Registry("surgery", __name__)


class Plan:
    """Operations to do one after the other, each written `name(option=value)`.

    Raises:
        UserError: if one is unknown, or has an option that it does not take.
    """

    def __init__(self, operations: Sequence[str]):
        specs = [parse(text) for text in operations]
        self.steps = [(str(spec), SURGERY.build(spec)) for spec in specs]

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint:
        for text, operation in self.steps:
            checkpoint = replace(operation(checkpoint), history=[*checkpoint.history, text])
        return checkpoint


def split_adapters(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the base, and those of its adapters."""
    base = {name: tensor for name, tensor in tensors.items() if not name.startswith(ADAPTERS_PREFIX)}
    return base, {name: tensor for name, tensor in tensors.items() if name not in base}


def languages_of(spec: Spec) -> list[str]:
    """The languages that the spec of adapters names: with the spec of a checkpoint, all that they depend on."""
    options = ADAPTERS.check(spec)
    lists = [options.get("embedded"), options.get("languages"), *(options.get("families") or [])]
    lists += [direction.split("-") for direction in options.get("directions") or []]
    return list(dict.fromkeys(language for languages in lists for language in languages or []))
