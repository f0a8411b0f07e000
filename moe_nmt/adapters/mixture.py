"""Soft mixtures of very small experts beside the linear maps of every layer: MoV and MoLoRA.

Every position mixes all experts by the softmax of a router; none is chosen, so there is nothing to balance.
Shape letters: T positions, R rows, A adapted rows, E experts, K rank, I inputs, O outputs, H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from moe_nmt.adapters import ADAPTERS, SIDES, Adapters, Host, LayerAdapter, LayerShape, Side
from moe_nmt.adapters.groups import NONE, SentenceGroups, chosen_languages, group_sentences, group_table
from moe_nmt.errors import UserError
from moe_nmt.moe.linear import Float32Linear, linear

INIT_STD = 0.02
"""Standard deviation of routers and of LoRA's A at the start."""
INNER = "feed_forward.inner"
"""The site after the activation of a dense feed-forward network."""

VectorSite = Literal["k_proj", "v_proj", "inner"]
LoRASite = Literal["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


class Site(nn.Module):
    """The experts at one place of a layer, and the router that mixes them.

    The router has no bias and works in float32. `forward` takes what went into the place, [..., I], and what came out
    of it, [..., O], and returns the output to go on with.
    """

    def __init__(self, count: int, dim: int):
        super().__init__()
        self.router = Float32Linear(dim, count, bias=False)
        nn.init.normal_(self.router.weight, std=INIT_STD)

    def weigh(self, x: Tensor) -> Tensor:
        """The weight of every expert: float32 [..., E], which sums to 1."""
        weight: Tensor = self.router(x).softmax(-1)
        return weight


class VectorMixture(Site):
    """`y * sum_e weight_e l_e` in each head, weighed by what is scaled: that head of y.

    All heads share the router. Kept are the l_e - 1, which start at 0: since the weights sum to 1, the mixture is
    `1 + sum_e weight_e (l_e - 1)`, exactly 1 at the start in every precision.
    """

    def __init__(self, count: int, width: int, heads: int = 1):
        super().__init__(count, width // heads)
        self.offset_HED = nn.Parameter(torch.zeros(heads, count, width // heads))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        head = y.view(*y.shape[:-1], self.offset_HED.shape[0], -1)
        scaled: Tensor = _Scale.apply(head, self.weigh(head).to(y.dtype), self.offset_HED)  # type: ignore[no-untyped-call]
        return scaled.flatten(-2)


class _Scale(torch.autograd.Function):
    """`y + y * (weight @ offset)` in each head: [..., H, D], [..., H, E] and [H, E, D]; the product is not kept."""

    @staticmethod
    def forward(ctx: FunctionCtx, y: Tensor, weight: Tensor, offset_HED: Tensor) -> Tensor:
        ctx.save_for_backward(y, weight, offset_HED)
        return torch.addcmul(y, y, torch.einsum("...he,hed->...hd", weight, offset_HED))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        y, weight, offset_HED = ctx.saved_tensors
        grad_y = torch.addcmul(grad, grad, torch.einsum("...he,hed->...hd", weight, offset_HED))
        moved = grad * y
        grad_weight = torch.einsum("...hd,hed->...he", moved, offset_HED)
        return grad_y, grad_weight, torch.einsum("...he,...hd->hed", weight, moved)


class LoRAMixture(Site):
    """`y + scale * sum_e weight_e B_e A_e x`, weighed by x, as two products with the matrices of all experts.

    `down`: the A_e, normal; `up`: the transposed B_e, 0 at the start.
    """

    def __init__(self, count: int, inputs: int, outputs: int, rank: int, scale: float):
        super().__init__(count, inputs)
        self.scale = scale
        self.down_EKI = nn.Parameter(torch.empty(count, rank, inputs))
        self.up_EKO = nn.Parameter(torch.zeros(count, rank, outputs))
        nn.init.normal_(self.down_EKI, std=INIT_STD)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = linear(x, self.down_EKI.flatten(0, 1)).view(*x.shape[:-1], *self.down_EKI.shape[:2])
        z = z * (self.scale * self.weigh(x)).to(z.dtype)[..., None]
        return y + linear(z.flatten(-2), self.up_EKO.flatten(0, 1).t())


class MixedLayer(LayerAdapter):
    """The sites of a layer, applied to the adapted rows of a batch; other rows and places stay as they are."""

    def __init__(self, sites: nn.ModuleDict, groups: SentenceGroups):
        self.sites, self.groups = sites, groups

    def on_linear(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        key = _key(name)
        if key not in self.sites:
            return y
        row_A, _ = self.groups.rows(y.shape[-2], y.device)
        if row_A is None:
            adapted: Tensor = self.sites[key](x, y)
            return adapted
        return y.index_copy(-2, row_A, self.sites[key](x.index_select(-2, row_A), y.index_select(-2, row_A)))

    def on_inner(self, h: Tensor) -> Tensor:
        return self.on_linear(INNER, h, h)


class MixtureAdapters(Adapters):
    """Sites in every layer, for the sentences of which a language is adapted.

    Args:
        host: the model.
        sites_of: the sites of a layer, by the names of `LayerAdapter.on_linear`, and `INNER`.
        languages: as in `MoVAdapters`.

    Raises:
        UserError: for an unknown language, or if no layer has a site.
    """

    table: Tensor

    def __init__(
        self, host: Host, sites_of: Callable[[LayerShape], Mapping[str, nn.Module]], languages: Sequence[str] | None
    ):
        super().__init__()
        adapted = chosen_languages(languages, host.languages)
        self.recorded = {"languages": adapted}
        for side in SIDES:
            layers = (sites_of(shape) for shape in getattr(host, side))
            sites = (nn.ModuleDict({_key(name): site for name, site in layer.items()}) for layer in layers)
            self.add_module(side, nn.ModuleList(sites))
        if not any(True for _ in self.parameters()):
            raise UserError(
                "no layer has any of the chosen sites; name others, or leave sites out for all "
                "(a mixture of experts has no sites, only a dense feed-forward network has)."
            )
        places = {host.languages.index(language) for language in adapted}
        table = group_table(len(host.languages), lambda *pair: NONE if places.isdisjoint(pair) else 0)
        self.register_buffer("table", table, persistent=False)

    def open(self, side: Side, source_language_B: Tensor, target_language_B: Tensor) -> Sequence[LayerAdapter | None]:
        groups = group_sentences(self.table, source_language_B, target_language_B)
        return [MixedLayer(sites, groups) if groups and len(sites) else None for sites in getattr(self, side)]


@ADAPTERS.register("mov", paper="Zadouri et al. 2024 (2309.05444)")
class MoVAdapters(MixtureAdapters):
    """Keys, values and inner feed-forward activations are scaled by a mixture of vectors.

    Args:
        host: the model.
        count: experts per site. One is (IA)^3.
        sites: what is scaled: `k_proj`, `v_proj` (of every attention), `inner`; None: all. Where the feed-forward block
            is a mixture of experts, it is left alone.
        languages: a sentence is adapted if its source or target language is among these; all others pass through
            unchanged. None: all.

    Raises:
        UserError: for an unknown language, or if no layer has a site.
    """

    def __init__(
        self,
        host: Host,
        *,
        count: int,
        sites: list[VectorSite] | None = None,
        languages: list[str] | None = None,
    ):
        if count < 1:
            raise UserError(f"count must be at least 1, not {count}.")
        chosen = ("k_proj", "v_proj", "inner") if sites is None else sites

        def sites_of(layer: LayerShape) -> dict[str, nn.Module]:
            width = {name: outputs for name, (_, outputs) in layer.linear.items()}
            if "feed_forward.fc1" in width:
                width[INNER] = width["feed_forward.fc1"]
            return {
                name: VectorMixture(count, size, heads=1 if name == INNER else layer.heads)
                for name, size in width.items()
                if _last(name) in chosen
            }

        super().__init__(host, sites_of, languages)


@ADAPTERS.register("molora", paper="Zadouri et al. 2024 (2309.05444)")
class MoLoRAAdapters(MixtureAdapters):
    """Every linear map of a layer gets a mixture of low-rank updates, (alpha / rank) B A.

    Args:
        host: the model.
        count: experts per linear map. One is LoRA.
        rank: of every update. alpha: its strength.
        sites: the linear maps, by the last part of their names: `q_proj`, `k_proj`, `v_proj`, `out_proj` (of every
            attention), `fc1`, `fc2` (where the feed-forward block is dense); None: all.
        languages: as in `MoVAdapters`.

    Raises:
        UserError: for an unknown language, or if no layer has a site.
    """

    def __init__(
        self,
        host: Host,
        *,
        count: int,
        rank: int,
        alpha: float = 16.0,
        sites: list[LoRASite] | None = None,
        languages: list[str] | None = None,
    ):
        if count < 1 or rank < 1 or alpha <= 0:
            raise UserError(f"count={count} and rank={rank} must be at least 1, and alpha={alpha} above 0.")

        def sites_of(layer: LayerShape) -> dict[str, nn.Module]:
            return {
                name: LoRAMixture(count, *size, rank, alpha / rank)
                for name, size in layer.linear.items()
                if sites is None or _last(name) in sites
            }

        super().__init__(host, sites_of, languages)


def _key(name: str) -> str:
    """The name of a site as that of a module, which must not have dots."""
    return name.replace(".", "_")


def _last(name: str) -> str:
    return name.rpartition(".")[2]
