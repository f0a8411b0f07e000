"""Cross entropy with label smoothing, in as few passes over the logits as there need be.

Shape letters: N tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def label_smoothed_cross_entropy(
    logit_NV: Tensor, target_N: Tensor, epsilon: float, padding: int
) -> tuple[Tensor, Tensor]:
    """The smoothed loss and the plain negative log-likelihood of each token: float32 [N], 0 for padding.

    With e = epsilon / (V - 1) for each wrong word and 1 - epsilon for the right one (Szegedy et al. 2016 with the
    right word left out of the uniform part), as fairseq's `label_smoothed_nll_loss` computes it. Gradients flow from
    the loss to the logits; the negative log-likelihood has none.
    """
    loss_N, nll_N = _LabelSmoothedCrossEntropy.apply(logit_NV, target_N, epsilon, padding)  # type: ignore[no-untyped-call]
    return loss_N, nll_N


class _LabelSmoothedCrossEntropy(torch.autograd.Function):
    """Autograd over the formula would write a gradient [N, V] for each of its terms; here it is written once."""

    @staticmethod
    def forward(ctx: Any, logit_NV: Tensor, target_N: Tensor, epsilon: float, padding: int) -> tuple[Tensor, Tensor]:
        log_prob_NV = logit_NV.log_softmax(-1, dtype=torch.float32)
        real_N = target_N.ne(padding)
        wrong = epsilon / (logit_NV.shape[1] - 1)
        nll_N = -log_prob_NV.gather(1, target_N[:, None]).squeeze(1) * real_N
        loss_N = (1 - epsilon - wrong) * nll_N - wrong * log_prob_NV.sum(1) * real_N
        ctx.save_for_backward(log_prob_NV, target_N, real_N)
        ctx.weights, ctx.dtype = (1 - epsilon - wrong, wrong), logit_NV.dtype
        ctx.mark_non_differentiable(nll_N)
        return loss_N, nll_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        log_prob_NV, target_N, real_N = ctx.saved_tensors
        right, wrong = ctx.weights
        grad_NV = log_prob_NV.exp().sub_(wrong)
        grad_NV.scatter_add_(1, target_N[:, None], grad_NV.new_full((1, 1), -right).expand(target_N.numel(), 1))
        return grad_NV.mul_((grad_N * real_N)[:, None]).to(ctx.dtype), None, None, None
