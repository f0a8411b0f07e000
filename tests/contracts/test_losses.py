"""What every routing loss promises.

Shape letters: N tokens, E experts.
"""

import pytest
import torch

from moe_nmt.moe import LOSSES, record_routing
from moe_nmt.moe.losses import without_tokens
from moe_nmt.schedules import Schedule
from tests.parts import context, examples, make_layer, tokens

BRANCH = {"gate_budget": "conditional"}
"""The branch without which a loss has nothing to say."""
every_loss = pytest.mark.parametrize("spec", list(map(str, examples(LOSSES))))


def make(spec, router="top_k(k=2)"):
    return make_layer(router, branch=BRANCH.get(spec))


def records_of(layers, count=24, dtype=torch.float32):
    records = []
    for layer in layers:
        with record_routing(layer) as recorded:
            layer.to(dtype)(tokens(count, dtype=dtype), context(count))
        records += [record for _, record in recorded]
    return records


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_loss_is_a_finite_float32_scalar(spec, layers, dtype):
    value = LOSSES.build(spec)(records_of([make(spec) for _ in range(layers)], dtype=dtype))
    assert value.shape == () and value.dtype == torch.float32 and value.isfinite()


@every_loss
@pytest.mark.parametrize("router", ["top_k(k=2)", "top_k(k=1, capacity_factor=0.5)", "bilevel(nodes=2)"])
def test_without_tokens_it_is_finite_and_so_are_its_gradients(spec, router):
    layer = make(spec, router)
    value = LOSSES.build(spec)(records_of([layer], count=0))
    assert value.isfinite() and value.dtype == torch.float32
    value.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


@every_loss
@pytest.mark.parametrize("router", ["top_k(k=2)", "top_k(k=1, capacity_factor=0.5)"])
def test_a_record_without_its_tokens_is_that_of_an_empty_batch(spec, router):
    layer = make(spec, router)
    (emptied,), (empty,) = map(without_tokens, records_of([layer])), records_of([layer], count=0)
    for found, wanted in zip(emptied, empty, strict=True):
        for name, value in wanted._asdict().items() if wanted is not None else ():
            assert not isinstance(value, torch.Tensor) or torch.equal(getattr(found, name), value), name
    value = LOSSES.build(spec)([emptied])
    assert torch.equal(value, LOSSES.build(spec)([empty]))
    value.backward()
    part = layer.branch.gate if spec in BRANCH else layer.router
    assert all(p.grad is not None and not p.grad.any() for p in part.parameters())


@every_loss
def test_the_gradient_reaches_every_router_or_gate(spec):
    layers = [make(spec), make(spec, "top_k(k=1)")]
    LOSSES.build(spec)(records_of(layers)).backward()
    for layer in layers:
        part = layer.branch.gate if spec in BRANCH else layer.router
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())


@every_loss
def test_the_weight_is_a_number_or_a_schedule(spec):
    loss = LOSSES.build(spec)
    assert isinstance(loss.weight, float | Schedule)
