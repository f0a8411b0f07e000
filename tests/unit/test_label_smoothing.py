"""The fused loss against its formula.

Shape letters: N tokens, V vocabulary.
"""

import pytest
import torch

from moe_nmt.training.label_smoothing import label_smoothed_cross_entropy

PADDING = 1


def by_formula(logit_NV, target_N, epsilon):
    """Each token's cross entropy to a distribution that gives each wrong word epsilon / (V - 1)."""
    vocabulary = logit_NV.shape[1]
    wanted_NV = torch.full_like(logit_NV, epsilon / (vocabulary - 1))
    wanted_NV.scatter_(1, target_N[:, None], 1 - epsilon)
    return -(wanted_NV * logit_NV.log_softmax(-1)).sum(1) * target_N.ne(PADDING)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("tokens", [0, 1, 40])
def test_values_and_gradients_equal_the_formula(epsilon, tokens):
    logit_NV = torch.randn(tokens, 11, dtype=torch.float64, requires_grad=True)
    target_N = torch.randint(11, (tokens,))
    factor_N = torch.linspace(-1, 1, tokens)
    loss_N, nll_N = label_smoothed_cross_entropy(logit_NV.float(), target_N, epsilon, PADDING)
    exact_N = by_formula(logit_NV, target_N, epsilon)
    torch.testing.assert_close(loss_N.double(), exact_N, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nll_N.double(), by_formula(logit_NV, target_N, 0.0), rtol=1e-5, atol=1e-5)
    found, exact = (torch.autograd.grad((loss * factor_N).sum(), logit_NV)[0] for loss in (loss_N, exact_N))
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)


def test_fairseq_computes_the_same():
    from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss

    logit_NV, target_N = torch.randn(30, 11, requires_grad=True), torch.randint(11, (30,))
    theirs = label_smoothed_nll_loss(
        logit_NV.log_softmax(-1), target_N[:, None], 0.1, ignore_index=PADDING, reduce=False
    )
    found = label_smoothed_cross_entropy(logit_NV, target_N, 0.1, PADDING)
    for mine, other in zip(found, theirs, strict=True):
        torch.testing.assert_close(mine, other.squeeze(1))
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), logit_NV)[0] for loss in (found[0], theirs[0])))


def test_gradients_twice_are_the_same():
    logit_NV, target_N = torch.randn(5, 7, requires_grad=True), torch.randint(7, (5,))
    loss = label_smoothed_cross_entropy(logit_NV, target_N, 0.1, PADDING)[0].sum()
    first = torch.autograd.grad(loss, logit_NV, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, logit_NV)[0])


def test_half_precision_logits_get_half_precision_gradients():
    logit_NV, target_N = torch.randn(5, 7, dtype=torch.bfloat16, requires_grad=True), torch.randint(7, (5,))
    loss_N, nll_N = label_smoothed_cross_entropy(logit_NV, target_N, 0.1, PADDING)
    loss_N.sum().backward()
    assert loss_N.dtype == nll_N.dtype == torch.float32 and logit_NV.grad.dtype == torch.bfloat16
    assert not nll_N.requires_grad
