"""The core on a GPU against the CPU, values and gradients."""

import copy

import pytest
import torch

from moe_nmt.adapters import ADAPTERS
from moe_nmt.moe import DISPATCHERS, EXPERTS, LOSSES, ROUTERS, MoELayer, record_routing
from moe_nmt.training.expert_adam import ExpertAdam
from moe_nmt.training.label_smoothing import label_smoothed_cross_entropy
from tests.parts import make_host

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICE = "cuda"
ROUTER_SPECS = ["top_k(k=1)", "top_k(k=2)", "top_k(k=2, capacity_factor=1.0)"]


def layer(router):
    experts = EXPERTS.build("ffn(count=16)", dim=64, ffn_dim=128)
    return MoELayer(ROUTERS.build(router, dim=64, num_experts=16), experts, DISPATCHERS.build("sorted"))


def outcome(module, x, device, dtype):
    module, x = module.to(device, dtype), x.to(device, dtype).requires_grad_()
    with record_routing(module) as records:
        y, _ = module(x)
    loss = LOSSES.build("load_balancing")([record for _, record in records])
    (y.float().square().sum() + loss).backward()
    gradients = {name: p.grad.float().cpu() for name, p in module.named_parameters()}
    return y.detach().float().cpu(), x.grad.float().cpu(), gradients


@pytest.mark.parametrize("tokens", [0, 1, 7, 500])
@pytest.mark.parametrize("router", ROUTER_SPECS)
def test_layer_in_float32_equals_the_cpu(router, tokens):
    module, x = layer(router), torch.randn(tokens, 64)
    state = module.state_dict()
    found = outcome(module, x, DEVICE, torch.float32)
    other = layer(router)
    other.load_state_dict({k: v.cpu() for k, v in state.items()})
    torch.testing.assert_close(found, outcome(other, x.detach().cpu(), "cpu", torch.float32), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tokens", [0, 1, 7, 500])
@pytest.mark.parametrize("router", ROUTER_SPECS)
def test_layer_in_bfloat16_runs(router, tokens):
    y, gradient, gradients = outcome(layer(router), torch.randn(tokens, 64), DEVICE, torch.bfloat16)
    assert y.isfinite().all() and gradient.isfinite().all()
    assert all(g.isfinite().all() for g in gradients.values())


def test_bias_gradient_in_bfloat16_is_that_of_float32():
    module, x = layer("top_k(k=2)").bfloat16(), torch.randn(4000, 64).bfloat16()
    state = {k: v.float() for k, v in module.state_dict().items()}
    found = outcome(module, x, DEVICE, torch.bfloat16)[2]
    other = layer("top_k(k=2)")
    other.load_state_dict(state)
    wanted = outcome(other, x.detach().float().cpu(), "cpu", torch.float32)[2]
    for name in ("experts.bias1_EF", "experts.bias2_ED", "experts.weight1_EDF", "experts.weight2_EFD"):
        error = (found[name] - wanted[name]).norm() / wanted[name].norm()
        assert error < 0.03, (name, float(error))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_optimizer_equals_the_cpu(dtype, scale):
    moved = []
    for device in (DEVICE, "cpu"):
        torch.manual_seed(1)
        parameters = [torch.nn.Parameter(torch.randn(n, 8).to(device, dtype)) for n in (3, 5, 1)]
        optimizer = ExpertAdam(parameters, lr=0.1, weight_decay=0.1)
        for _ in range(3):
            for p in parameters:
                p.grad = torch.randn(p.shape).to(device, dtype)
            optimizer.step(scale=torch.tensor(scale, device=device))
            optimizer.step(scale=scale)
        moved.append([p.detach().float().cpu() for p in parameters])
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(*moved, rtol=tolerance, atol=tolerance)


def test_moments_of_a_checkpoint_come_to_the_device():
    """What fairseq's memory-efficient optimizer does on resuming: it puts the loaded state, on the CPU, back."""
    parameter = torch.nn.Parameter(torch.randn(4, 8, device=DEVICE).bfloat16())
    optimizer = ExpertAdam([parameter])
    optimizer.state[parameter] = {"step": 1, "exp_avg": torch.zeros(4, 8), "exp_avg_sq": torch.zeros(4, 8)}
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_equals_the_cpu(dtype):
    logit, target = torch.randn(50, 99).to(dtype), torch.randint(0, 99, (50,))
    found = []
    for device in (DEVICE, "cpu"):
        x = logit.detach().to(device).requires_grad_()
        loss, nll = label_smoothed_cross_entropy(x, target.to(device), 0.1, 1)
        loss.sum().backward()
        found.append([loss.detach().cpu(), nll.cpu(), x.grad.float().cpu()])
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-3)


ADAPTER_SPECS = ["bottleneck(dim=16)", "hyper(dim=16, hidden=32)", "mov(count=3)", "molora(count=3, rank=2)"]


def adapted(adapters, x, device):
    """The first layer's key projection and output, and all gradients, of a batch of three directions."""
    adapters, x = copy.deepcopy(adapters).to(device), x.to(device).requires_grad_()
    languages = (torch.tensor(side, device=device) for side in ([0, 1, 0, 2], [1, 0, 1, 1]))
    layer = adapters.open("encoder", *languages)[0]
    y = layer.on_output(layer.on_linear("self_attn.k_proj", x, 2 * x))
    y.square().sum().backward()
    gradients = {name: p.grad.cpu() for name, p in adapters.named_parameters() if p.grad is not None}
    return y.detach().cpu(), x.grad.cpu(), gradients


@pytest.mark.parametrize("spec", ADAPTER_SPECS)
def test_adapters_equal_those_on_the_cpu(spec):
    adapters, x = ADAPTERS.build(spec, host=make_host(dim=64)), torch.randn(7, 4, 64)
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.testing.assert_close(adapted(adapters, x, DEVICE), adapted(adapters, x, "cpu"), rtol=1e-3, atol=1e-3)
