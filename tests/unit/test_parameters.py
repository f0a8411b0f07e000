"""Parameter counts against arithmetic."""

import pytest
import torch
from torch import nn

from moe_nmt.moe import BRANCHES
from moe_nmt.moe.parameters import count_parameters
from tests.parts import make_layer

DIM, INNER, EXPERTS = 8, 16, 4
ONE_EXPERT = DIM * INNER + INNER + INNER * DIM + DIM
GATE = DIM * EXPERTS


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_token_is_computed_by_k_experts(k):
    counts = count_parameters(make_layer(f"top_k(k={k})"))
    assert counts == (GATE + EXPERTS * ONE_EXPERT, EXPERTS * ONE_EXPERT, GATE + k * ONE_EXPERT)


def test_branches_and_dense_layers_are_always_active():
    layer = make_layer("top_k(k=1)", branch=BRANCHES.build("residual", dim=DIM, ffn_dim=INNER))
    model = nn.Sequential(nn.Linear(3, 2), layer)
    always = 3 * 2 + 2 + ONE_EXPERT + GATE
    assert count_parameters(model) == (always + EXPERTS * ONE_EXPERT, EXPERTS * ONE_EXPERT, always + ONE_EXPERT)


def test_shared_parameters_count_once():
    model = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False))
    model[1].weight = model[0].weight
    assert count_parameters(model) == (25, 0, 25)


def test_a_shared_layer_counts_once():
    layer = make_layer("top_k(k=1)")
    assert count_parameters(nn.ModuleList([layer, layer])) == count_parameters(layer)


def test_models_on_the_meta_device_are_counted():
    with torch.device("meta"):
        layer = make_layer("top_k(k=2)")
    assert count_parameters(layer) == count_parameters(make_layer("top_k(k=2)"))
