"""What the routers decided: records of calls, and statistics over them.

Shape letters: N tokens (no padding), E experts, A assignments, L languages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moe_nmt.moe.layer import MoELayer
from moe_nmt.moe.routing import MoERecord, Routing, expert_load, num_experts, num_tokens


class LayerRecord(NamedTuple):
    """A record and the name of the layer that it comes from, for example `encoder.layers.1.feed_forward.moe`."""

    layer: str
    record: MoERecord


@contextmanager
def record_routing(model: nn.Module) -> Iterator[list[LayerRecord]]:
    """Collect the records of all MoE layers of a model while the scope is open, in the order of the calls.

    The tensors carry their gradients, also under `torch.utils.checkpoint` with `use_reentrant=False`: compute losses
    from them and call `backward` after the scope has closed, so that recomputation is not recorded again.
    """
    records: list[LayerRecord] = []

    def hook_for(name: str) -> Any:
        return lambda module, inputs, output: records.append(LayerRecord(name, output[1]))

    handles = [m.register_forward_hook(hook_for(n)) for n, m in model.named_modules() if isinstance(m, MoELayer)]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class RoutingSummary:
    """What one record says of its batch; scalars are 0-dimensional tensors, so that nothing waits for the device.

    `entropy`: mean entropy of the routing probabilities, in nats. `overflow`: share of the assignments that was
    dropped for lack of capacity, 0 to 1. `balance`: E * sum of squared shares of the load, 1 when uniform, E when one
    expert has it all. `max_load`: the largest of these shares. `unused`: number of experts without an assignment.
    `share_E`: each expert's share of the load, float [E].
    """

    entropy: Tensor
    overflow: Tensor
    balance: Tensor
    max_load: Tensor
    unused: Tensor
    share_E: Tensor


@torch.no_grad()
def summarize(routing: Routing) -> RoutingSummary:
    """Summarize one routing. Of an empty batch all figures are 0."""
    load_E = expert_load(routing).float()
    total = load_E.sum()
    dropped = torch.zeros_like(total) if routing.dropped_E is None else routing.dropped_E.sum().float()
    share_E = load_E / total.clamp(min=1)
    entropy_N = torch.special.entr(routing.prob_NE).sum(-1)
    nonempty = float(num_tokens(routing) > 0)
    return RoutingSummary(
        entropy=entropy_N.sum() / max(num_tokens(routing), 1),
        overflow=dropped / (total + dropped).clamp(min=1),
        balance=load_E.numel() * share_E.square().sum(),
        max_load=share_E.max(),
        unused=(load_E == 0).sum() * nonempty,
        share_E=share_E,
    )


class RoutingStatistics:
    """Expert load, and mean gate of the branch, per language and layer, over any number of batches.

    Args:
        num_languages: L, length of the language list.
    """

    def __init__(self, num_languages: int):
        self.num_languages = num_languages
        self._load: dict[str, dict[str, Tensor]] = {}
        self._gate: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def update(self, records: Iterable[LayerRecord]) -> None:
        """Add the records of a batch. A side whose language the context does not know is not counted."""
        for name, record in records:
            sides = {"source": record.context.source_language_N, "target": record.context.target_language_N}
            for side, language_N in sides.items():
                if language_N is not None:
                    _add(self._load, name, side, self._count(record.routing, language_N))
                    if record.gate is not None:
                        _add(self._gate, name, side, self._sum(record.gate.gate_N, language_N))

    def _count(self, routing: Routing, language_N: Tensor) -> Tensor:
        experts = num_experts(routing)
        cell_A = language_N[routing.token_A] * experts + routing.expert_A
        return torch.bincount(cell_A, minlength=self.num_languages * experts).view(self.num_languages, experts).cpu()

    def _sum(self, value_N: Tensor, language_N: Tensor) -> Tensor:
        """float64 [2, L]: the sum of the values of each language's tokens, and their number."""
        weights = (value_N.double(), torch.ones_like(value_N, dtype=torch.float64))
        return torch.stack([torch.bincount(language_N, w, minlength=self.num_languages) for w in weights]).cpu()

    @property
    def layers(self) -> list[str]:
        """The layers seen so far, in the order of their first call."""
        return list(self._load)

    @property
    def gated_layers(self) -> list[str]:
        """Those of the layers whose branch has a gate."""
        return list(self._gate)

    def load(self, layer: str, side: str) -> Tensor:
        """int64 [L, E]: assignments of each language's tokens (`source` or `target` side) to each expert."""
        return self._load[layer][side]

    def gate(self, layer: str, side: str) -> Tensor:
        """float64 [L]: mean gate over each language's tokens, NaN where there is none."""
        sums_2L = self._gate[layer][side]
        return sums_2L[0] / sums_2L[1]


def _add(sums: dict[str, dict[str, Tensor]], layer: str, side: str, value: Tensor) -> None:
    sides = sums.setdefault(layer, {})
    sides[side] = sides[side] + value if side in sides else value
