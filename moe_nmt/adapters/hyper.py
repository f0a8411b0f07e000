"""Hyper-adapters: one network that generates the bottleneck adapters of all layers and languages.

Shape letters: G groups of sentences with the same adapters, D model width, H bottleneck width, M inputs of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from moe_nmt.adapters import ADAPTERS, SIDES, Adapters, Host, LayerAdapter, Side
from moe_nmt.adapters.bottleneck import Bottleneck, BottleneckWeights
from moe_nmt.adapters.groups import NONE, chosen_languages, group_sentences, group_table
from moe_nmt.errors import UserError
from moe_nmt.moe.linear import Linear

Input = Literal["source", "target", "layer"]
CACHED_GROUPS = 256
"""For how many groups of each side generated adapters are kept in evaluation."""
MEASURED = 128
"""How many adapters are generated at most, to measure their standard deviation."""


class ResidualBlock(nn.Module):
    """`h + W2 dropout(relu(W1 norm(h)))`."""

    def __init__(self, hidden: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.fc1, self.fc2 = Linear(hidden, hidden), Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        y: Tensor = h + self.fc2(self.dropout(self.fc1(self.norm(h)).relu()))
        return y


class HyperNetwork(nn.Module):
    """Embeddings of source language, target language and layer to the weights of an adapter (section 3 of the paper).

    Every weight is a linear function of the hidden vector, divided by sqrt(hidden) if `rescale`: else its standard
    deviation grows with sqrt(hidden), and large networks train badly.
    """

    def __init__(
        self,
        languages: int,
        layers: int,
        dim: int,
        bottleneck: int,
        hidden: int,
        embed_dim: int,
        blocks: int,
        dropout: float,
        rescale: bool,
        tied: bool,
        generate_norm: bool,
    ):
        super().__init__()
        self.dim, self.bottleneck = dim, bottleneck
        self.scale = 1 / math.sqrt(hidden) if rescale else 1.0
        self.source_embedding = nn.Embedding(languages, embed_dim)
        self.target_embedding = self.source_embedding if tied else nn.Embedding(languages, embed_dim)
        self.layer_embedding = nn.Embedding(layers, embed_dim)
        self.input = Linear(3 * embed_dim, hidden)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(ResidualBlock(hidden, dropout) for _ in range(blocks)))
        sizes = {"down": dim * bottleneck, "down_bias": bottleneck, "up": bottleneck * dim, "up_bias": dim}
        if generate_norm:
            sizes |= {"norm_weight": dim, "norm_bias": dim}
        self.heads = nn.ModuleDict({name: Linear(hidden, size) for name, size in sizes.items()})

    def embed(self, source_M: Tensor, target_M: Tensor, layer_M: Tensor) -> Tensor:
        """[M, 3 * embed_dim]; a negative index stands for an input that is left out, and gives zeros."""
        pairs = (self.source_embedding, source_M), (self.target_embedding, target_M), (self.layer_embedding, layer_M)
        return torch.cat([table(index.clamp(min=0)) * (index >= 0)[:, None] for table, index in pairs], 1)

    def encode(self, source_M: Tensor, target_M: Tensor, layer_M: Tensor) -> Tensor:
        """The hidden vectors: float [M, hidden]."""
        h: Tensor = self.blocks(self.dropout(self.input(self.embed(source_M, target_M, layer_M)).relu()))
        return h

    def generate(self, source_M: Tensor, target_M: Tensor, layer_M: Tensor) -> BottleneckWeights:
        """M adapters. The generated layer norm is 1 + what the head says; without a head for it, there is none."""
        h = self.encode(source_M, target_M, layer_M)
        made = {name: head(h) * self.scale for name, head in self.heads.items()}
        ones = h.new_ones(h.shape[0], self.dim)
        return BottleneckWeights(
            norm_weight_GD=ones + made["norm_weight"] if "norm_weight" in made else ones,
            norm_bias_GD=made.get("norm_bias", torch.zeros_like(ones)),
            down_GDH=made["down"].view(-1, self.dim, self.bottleneck),
            down_bias_GH=made["down_bias"],
            up_GHD=made["up"].view(-1, self.bottleneck, self.dim),
            up_bias_GD=made["up_bias"],
        )

    @torch.no_grad()
    def reset_parameters(self, init: Literal["identity", "hyper", "xavier"]) -> None:
        """Draw the parameters.

        All linear maps as Xavier draws them, biases at 0, and then by `init`. `hyper`: the heads of `down` and `up` are
        scaled so that the *generated* matrices have the standard deviation of a Xavier linear map of their size,
        sqrt(2 / (D + H)), measured over languages and layers (at most `MEASURED` combinations) with all inputs and the
        rescaling in force (the published code measures without it, which makes them too small by sqrt(hidden)); the
        other heads are near 0. `identity`: the same, but the heads of `up` and its bias are 0, so that adapters start
        without effect. `xavier`: nothing more, which makes the generated matrices about ten times smaller.
        """
        for embedding in (self.source_embedding, self.target_embedding, self.layer_embedding):
            nn.init.trunc_normal_(embedding.weight, std=1.0)
        for linear in (module for module in self.modules() if isinstance(module, Linear)):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        if init == "xavier":
            return
        weight = {name: self.get_parameter(f"heads.{name}.weight") for name in self.heads}
        for name in weight:
            if name not in ("down", "up"):
                nn.init.uniform_(weight[name], -0.01, 0.01)
        if not self.input.weight.is_meta:
            training = self.training
            languages, layers = self.source_embedding.num_embeddings, self.layer_embedding.num_embeddings
            pairs = torch.cartesian_prod(torch.arange(languages), torch.arange(layers))
            language_M, layer_M = pairs[torch.randperm(len(pairs))[:MEASURED]].unbind(1)
            made = self.eval().generate(language_M, language_M, layer_M)
            self.train(training)
            wanted = math.sqrt(2 / (self.dim + self.bottleneck))
            weight["down"].mul_(wanted / made.down_GDH.std())
            weight["up"].mul_(wanted / made.up_GHD.std())
        if init == "identity":
            nn.init.zeros_(weight["up"])
            nn.init.zeros_(weight["up_bias"])


@ADAPTERS.register("hyper", paper="Baziotis et al. 2022 (2205.10835)")
class HyperAdapters(Adapters):
    """Bottleneck adapters that one network generates from embeddings of source language, target language and layer.

    A batch may mix directions: adapters are generated once for each distinct combination of inputs in it, for all
    layers of a side together. In evaluation they are kept, so that decoding costs what plain adapters cost.

    Args:
        host: the model.
        dim: width of the bottleneck.
        hidden: width of the network.
        encoder_inputs, decoder_inputs: what adapters of that side depend on; the others are left out (zeros). Two
            sentences that agree in these have the same adapters.
        languages: sentences with none of these among the inputs of a side pass through it unchanged; None: all that are
            embedded.
        embedded: languages that have an embedding; None: all of the model's.
        embed_dim: width of each embedding. blocks: residual blocks of the network. dropout: in the network.
        tied: one embedding of a language as source and as target.
        generate_norm: also generate the layer norm of every adapter; False: it has no parameters.
        rescale: divide what is generated by sqrt(hidden), see `HyperNetwork`.
        init: see `HyperNetwork.reset_parameters`. `identity` for a model that is trained already, `hyper` for one that
            is trained together with its adapters from the beginning.

    Raises:
        UserError: for an unknown language, or encoder and decoder of different widths.
    """

    def __init__(
        self,
        host: Host,
        *,
        dim: int,
        hidden: int,
        encoder_inputs: list[Input] | None = None,
        decoder_inputs: list[Input] | None = None,
        languages: list[str] | None = None,
        embedded: list[str] | None = None,
        embed_dim: int = 50,
        blocks: int = 2,
        dropout: float = 0.0,
        tied: bool = False,
        generate_norm: bool = True,
        rescale: bool = True,
        init: Literal["identity", "hyper", "xavier"] = "identity",
    ):
        super().__init__()
        if min(dim, hidden, embed_dim) < 1 or blocks < 0 or not 0 <= dropout < 1:
            raise UserError(
                "dim, hidden and embed_dim must be at least 1, blocks at least 0, dropout from 0 to below 1."
            )
        widths = {shape.dim for side in SIDES for shape in getattr(host, side)}
        if len(widths) != 1:
            raise UserError("encoder and decoder must be of one width; use bottleneck adapters for this model.")
        embedded = chosen_languages(embedded, host.languages)
        adapted = chosen_languages(languages, embedded)
        self.inputs: dict[Side, list[Input]] = {
            "encoder": list(get_args(Input)) if encoder_inputs is None else encoder_inputs,
            "decoder": list(get_args(Input)) if decoder_inputs is None else decoder_inputs,
        }
        self.recorded = {"languages": adapted, "embedded": embedded}
        self.first_layer = {"encoder": 0, "decoder": len(host.encoder)}
        self.layers = {side: len(getattr(host, side)) for side in SIDES}
        self.num_languages = len(embedded)
        self.network = HyperNetwork(
            len(embedded),
            sum(self.layers.values()),
            widths.pop(),
            dim,
            hidden,
            embed_dim,
            blocks,
            dropout,
            rescale,
            tied,
            generate_norm,
        )
        self.network.reset_parameters(init)
        self._kept: dict[Side, dict[int, BottleneckWeights]] = {side: {} for side in SIDES}
        self._joined: dict[Side, tuple[list[int], BottleneckWeights]] = {}
        for side in SIDES:
            self.register_buffer(
                f"{side}_table", self._table(side, host.languages, embedded, adapted), persistent=False
            )

    def _table(self, side: Side, known: Sequence[str], embedded: list[str], adapted: list[str]) -> Tensor:
        """A group is source * (L + 1) + target, for L embedded languages; L stands for an input that is left out."""
        number = {name: index for index, name in enumerate(embedded)}
        left_out = len(embedded)

        def group_of(source: int, target: int) -> int:
            used = {name: known[i] for name, i in (("source", source), ("target", target)) if name in self.inputs[side]}
            if any(name not in number for name in used.values()) or (used and set(used.values()).isdisjoint(adapted)):
                return NONE
            first, second = (number[used[name]] if name in used else left_out for name in ("source", "target"))
            return first * (left_out + 1) + second

        return group_table(len(known), group_of)

    def open(self, side: Side, source_language_B: Tensor, target_language_B: Tensor) -> Sequence[LayerAdapter | None]:
        groups = group_sentences(getattr(self, f"{side}_table"), source_language_B, target_language_B)
        if groups is None:
            return [None] * self.layers[side]
        present = groups.present
        weights = (
            self.generate(side, present) if torch.is_grad_enabled() or self.training else self._keep(side, present)
        )
        groups = groups.renumbered()
        layers = zip(*(part.unbind() for part in weights), strict=True)
        return [Bottleneck(BottleneckWeights(*parts), groups) for parts in layers]

    def generate(self, side: Side, groups: Sequence[int]) -> BottleneckWeights:
        """The adapters of these groups for all layers of a side; each weight is [layers, G, …]."""
        device = self.network.input.weight.device
        group_G = torch.tensor(groups, device=device)
        source_G, target_G = group_G // (self.num_languages + 1), group_G % (self.num_languages + 1)
        layer = torch.arange(self.layers[side], device=device)
        layer_M = (layer + self.first_layer[side]).repeat_interleave(len(groups))
        indices = [source_G.repeat(len(layer)), target_G.repeat(len(layer)), layer_M]
        names: tuple[Input, ...] = ("source", "target", "layer")
        masked = [
            index if name in self.inputs[side] else torch.full_like(index, -1)
            for name, index in zip(names, indices, strict=True)
        ]
        made = self.network.generate(*masked)
        return BottleneckWeights(*(part.view(len(layer), len(groups), *part.shape[1:]) for part in made))

    def _keep(self, side: Side, groups: list[int]) -> BottleneckWeights:
        """As `generate`, from what was generated before; each group by itself, so that it is the same in any batch."""
        kept = self._kept[side]
        missing = [group for group in groups if group not in kept]
        if len(kept) + len(missing) > CACHED_GROUPS:
            kept.clear()
            missing = groups
        kept.update({group: self.generate(side, [group]) for group in missing})
        if len(groups) == 1:
            return kept[groups[0]]
        if self._joined.get(side, ([],))[0] != groups:
            parts = zip(*(kept[group] for group in groups), strict=True)
            self._joined[side] = groups, BottleneckWeights(*(torch.cat(part, 1) for part in parts))
        return self._joined[side][1]

    def _forget(self) -> None:
        self._joined.clear()
        for kept in self._kept.values():
            kept.clear()

    def train(self, mode: bool = True) -> HyperAdapters:
        self._forget()
        return super().train(mode)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> HyperAdapters:
        self._forget()
        applied: HyperAdapters = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return applied

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*args, **kwargs)
