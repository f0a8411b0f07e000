"""Switch's small initialisation."""

import math

import pytest
import torch

from moe_nmt.moe import EXPERTS, ROUTERS
from moe_nmt.moe.initialization import truncated_normal_
from moe_nmt.registry import RegistryError


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_the_standard_deviation_is_the_one_asked_for(scale):
    weight = torch.empty(400, 500)
    truncated_normal_(weight, scale, fan_in=300)
    std = math.sqrt(scale / 300)
    assert weight.std().item() == pytest.approx(std, rel=0.02)
    assert abs(weight.mean().item()) < 5 * std / math.sqrt(weight.numel())
    assert weight.abs().max().item() <= 2 * std / 0.8796 * 1.001, "cut off at two standard deviations"


def test_experts_and_gate_take_the_scale():
    experts = EXPERTS.build("ffn(count=8, init_scale=0.1)", dim=64, ffn_dim=256)
    assert experts.weight1_EDF.std().item() == pytest.approx(math.sqrt(0.1 / 64), rel=0.02)
    assert experts.weight2_EFD.std().item() == pytest.approx(math.sqrt(0.1 / 256), rel=0.02)
    assert not experts.bias1_EF.any() and not experts.bias2_ED.any()
    router = ROUTERS.build("top_k(init_scale=0.1)", dim=512, num_experts=64)
    assert router.gate.weight.std().item() == pytest.approx(math.sqrt(0.1 / 512), rel=0.02)


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(RegistryError, match="init_scale must be above 0"):
        EXPERTS.build(f"ffn(count=2, init_scale={scale})", dim=4, ffn_dim=8)
