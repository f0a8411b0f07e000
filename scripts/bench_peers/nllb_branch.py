"""The algorithm of fairseq's `nllb` branch (GShard's), written anew from its description, on one device.

Top-2 or top-1 gating writes one-hot [N, E, C] tensors; matrix products with them bring the tokens into the experts'
buffers of C slots and back, and the experts are a loop over [E, C, D]. C is k ceil(N / E), the branch's capacity in
training, also in inference, where its recipes take far more; tokens above it are dropped.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench_peers import FFN, Cell, load_balancing_loss, set_gate


class Layer(nn.Module):
    def __init__(self, cell: Cell):
        super().__init__()
        self.k = cell.k
        self.gate = nn.Linear(cell.dim, cell.experts, bias=False)
        self.experts = nn.ModuleList(FFN(cell.dim, cell.ffn_dim) for _ in range(cell.experts))
        set_gate(self.gate, cell)

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        tokens, experts = x_ND.shape[0], len(self.experts)
        capacity = self.k * math.ceil(tokens / experts)
        combine_NEC, loss = self.gating(self.gate(x_ND), capacity)
        dispatch_NEC = combine_NEC.bool()
        slot_ECD = dispatch_NEC.to(x_ND.dtype).permute(1, 2, 0).reshape(experts * capacity, tokens) @ x_ND
        chunks = slot_ECD.view(experts, capacity, -1).unbind(0)
        output_ECD = torch.cat([expert(chunk) for expert, chunk in zip(self.experts, chunks, strict=True)])
        return combine_NEC.view(tokens, experts * capacity).mm(output_ECD), loss

    def gating(self, logit_NE: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
        """The weight of each token in each slot, and the load-balancing loss."""
        experts = logit_NE.shape[1]
        prob_NE = logit_NE.softmax(-1, dtype=torch.float32)
        first_N = prob_NE.argmax(-1)
        masks = [functional.one_hot(first_N, experts)]
        if self.k == 2:
            others_NE = logit_NE.masked_fill(masks[0].bool(), -math.inf)
            masks.append(functional.one_hot(others_NE.argmax(-1), experts))
        taken_E = torch.zeros_like(masks[0][0])
        kept, slots = [], []
        for mask_NE in masks:
            slot_NE = mask_NE.cumsum(0) - 1 + taken_E
            taken_E = taken_E + mask_NE.sum(0)
            mask_NE = mask_NE * (slot_NE < capacity)
            kept.append(mask_NE)
            slots.append((slot_NE * mask_NE).sum(-1))
        weights = [(prob_NE * mask_NE).sum(-1) for mask_NE in kept]
        if self.k == 2:
            total_N = (weights[0] + weights[1]).clamp(min=torch.finfo(torch.float32).eps)
            weights = [weight_N / total_N for weight_N in weights]
        combine_NEC = sum(
            (weight_N[:, None] * mask_NE)[:, :, None] * functional.one_hot(slot_N, capacity)[:, None, :]
            for weight_N, mask_NE, slot_N in zip(weights, kept, slots, strict=True)
        )
        return combine_NEC.to(logit_NE.dtype), load_balancing_loss(prob_NE, first_N)


def check(cell: Cell) -> None:
    cell.require_k(1, 2)
    cell.require_memory(5 * 4 * cell.k * cell.tokens**2)  # about five [N, E, C] tensors at the same time


build = Layer
