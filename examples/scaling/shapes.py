"""What the scaling model is told: the model, the machine, and how the one is trained on the other.

Letters: d model width, f inner width, F that of an expert, E experts of a layer, k of them per token, V vocabulary,
S tokens of a sentence, n tokens of a rank and batch (on each side); N ranks, R of a node, G of an expert group.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from moe_nmt.errors import UserError


class Precision(NamedTuple):
    """Bytes of a `number` that is computed with or sent, and of a parameter: its weight, its gradient, what the
    optimizer keeps (moments, copies), and what a step of Adam reads and writes (`moved`)."""

    number: int
    weight: int
    gradient: int
    optimizer: int
    moved: int


PRECISIONS = {
    "fp32": Precision(4, weight=4, gradient=4, optimizer=8, moved=28),
    "bf16": Precision(2, weight=2, gradient=2, optimizer=16, moved=40),
    "memory_efficient_bf16": Precision(2, weight=2, gradient=2, optimizer=8, moved=22),
}
"""fairseq's: --bf16 and --fp16 keep float32 copies of weights and gradients beside the moments, --memory-efficient-bf16
and -fp16 do not. Adam reads weight, gradient and two moments, and writes all but the gradient; with copies it reads
the gradient to widen it, and writes the weight twice."""


@dataclass(frozen=True)
class Model:
    """The shape of a `transformer_moe` with shared embeddings; experts in every `moe_freq`-th layer, 0: none."""

    encoder_layers: int
    decoder_layers: int
    dim: int
    ffn_dim: int
    heads: int
    vocabulary: int
    moe_freq: int = 0
    experts: int = 1
    k: int = 1
    expert_dim: int = 0

    def without_experts(self) -> Model:
        """The dense model of these widths."""
        return replace(self, moe_freq=0)

    @property
    def sparse_layers(self) -> int:
        return sum(layers // self.moe_freq for layers in (self.encoder_layers, self.decoder_layers) if self.moe_freq)

    @property
    def layers(self) -> int:
        return self.encoder_layers + self.decoder_layers

    @property
    def attentions(self) -> int:
        return self.encoder_layers + 2 * self.decoder_layers

    @property
    def expert_parameters(self) -> int:
        """E (2dF + F + d) of each sparse layer."""
        return self.sparse_layers * self.experts * (2 * self.dim * self.expert_dim + self.expert_dim + self.dim)

    @property
    def dense_parameters(self) -> int:
        """4 (d^2 + d) of an attention, 2df + f + d of a dense block, Ed of a router, 2d of a norm, Vd once."""
        d, f = self.dim, self.ffn_dim
        blocks = (self.layers - self.sparse_layers) * (2 * d * f + f + d) + self.sparse_layers * self.experts * d
        norms = self.attentions + self.layers + 2
        return self.vocabulary * d + self.attentions * 4 * (d * d + d) + blocks + norms * 2 * d

    @property
    def active_parameters(self) -> int:
        """Those that compute a token: k of E experts."""
        return self.dense_parameters + self.expert_parameters * self.k // self.experts

    def dense_flops(self, tokens: int, sentence: int) -> tuple[int, int]:
        """Forward, of n tokens on each side, of the layers without their experts, and of the output.

        2 per multiply-add (Narayanan et al. 2021, appendix): attention n (8d^2 + 4Sd), dense block 4ndf, router 2ndE;
        output 2ndV.
        """
        n, d = tokens, self.dim
        attention = self.attentions * n * (8 * d * d + 4 * sentence * d)
        dense = (self.layers - self.sparse_layers) * 4 * n * d * self.ffn_dim
        return attention + dense + self.sparse_layers * 2 * n * d * self.experts, 2 * n * d * self.vocabulary

    def expert_flops(self, tokens: int) -> int:
        """Forward, of one sparse layer: 4nkdF."""
        return 4 * tokens * self.k * self.dim * self.expert_dim


@dataclass(frozen=True)
class Link:
    """What a rank sends while it receives as much: bytes per second in an all-to-all (`bandwidth`) and in an all-reduce
    (`reduce_bandwidth`); `latency`: seconds per message."""

    bandwidth: float
    reduce_bandwidth: float
    latency: float


@dataclass(frozen=True)
class Machine:
    """The constants of one file of this folder; `sources` says where each comes from.

    `flops`: peak per second of a device; `utilization` and `expert_utilization`: what the dense layers and the sparse
    ones reach of it in training. `memory` and `memory_bandwidth`: of a device. `cores`: None if a rank has a device of
    its own; else how many devices (cores) all ranks share. `overlaps`: whether rows can travel during a computation.
    """

    name: str
    flops: float
    utilization: float
    expert_utilization: float
    memory: float
    memory_bandwidth: float
    within: Link
    across: Link
    ranks_per_node: int
    cores: int | None
    overlaps: bool
    measured: bool
    sources: dict[str, str]

    @classmethod
    def load(cls, path: Path) -> Machine:
        """Read a JSON file that has all these names."""
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            data |= {name: Link(**data[name]) for name in ("within", "across")}
            return cls(**data)
        except (ValueError, KeyError, TypeError) as error:
            names = ", ".join(field.name for field in fields(cls))
            raise UserError(f"{path} is no machine ({error}); it needs a JSON object of {names}.") from error

    def share(self, ranks: int) -> float:
        """The part of a device that each of N busy ranks has."""
        return 1.0 if self.cores is None else min(1.0, self.cores / ranks)

    def latency(self, link: Link, ranks: int) -> float:
        """Of a message among N ranks, which may have to wait for their turn on a core."""
        return link.latency / self.share(ranks)


@dataclass(frozen=True)
class Plan:
    """How it is trained: N `ranks`, R `ranks_per_node`, G `expert_ranks` (1: every rank has all experts).

    `tokens`: n, of a rank and batch on each side; `sentence`: S. `balance`: rows of the busiest rank by the mean.

    Raises:
        UserError: if the numbers do not go together.
    """

    ranks: int
    expert_ranks: int
    ranks_per_node: int
    tokens: int
    sentence: int = 32
    chunks: int = 1
    by_node: bool = False
    update_freq: int = 1
    precision: str = "fp32"
    recompute: bool = False
    balance: float = 1.0

    def __post_init__(self) -> None:
        wanted = {
            "the ranks of a node": (self.ranks_per_node, self.ranks),
            "the ranks that share the experts": (self.expert_ranks, self.ranks),
        }
        for name, (part, whole) in wanted.items():
            if part < 1 or whole % part:
                raise UserError(f"{name}, {part}, must divide the number of ranks, {whole}.")
        if self.expert_ranks % self.ranks_per_node and self.ranks_per_node % self.expert_ranks:
            raise UserError("the ranks that share the experts must be a part of a node or whole nodes.")
        if min(self.tokens, self.sentence, self.update_freq, self.chunks, self.balance) < 1:
            raise UserError("tokens, sentence, update_freq, chunks and balance must be at least 1.")
        if self.precision not in PRECISIONS:
            raise UserError(f"precision {self.precision} is unknown; choose one of {', '.join(PRECISIONS)}.")

    @property
    def group_per_node(self) -> int:
        """Ranks of an expert group that are in one node."""
        return min(self.expert_ranks, self.ranks_per_node)

    @property
    def passes(self) -> int:
        """Passes over a layer that take as long as its forward pass: 1 + 2 of the backward pass + 1 of recomputing."""
        return 4 if self.recompute else 3
