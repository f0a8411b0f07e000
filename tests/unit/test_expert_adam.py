"""`ExpertAdam` against loops that follow the papers, and against fairseq's own Adam."""

import copy

import pytest
import torch
from torch import nn

from moe_nmt.moe import DISPATCHERS, EXPERTS, ROUTERS, MoELayer
from moe_nmt.training.expert_adam import LOOK, ExpertAdam, mark_stacked, touched_experts

OPTIONS = {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}


def adam_by_hand(parameter, gradients, lr, betas, eps, weight_decay):
    """The formula of `ExpertAdam`'s docstring in float64, one step per gradient."""
    p = parameter.double()
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for t, gradient in enumerate(gradients, start=1):
        g = gradient.double()
        p = p * (1 - lr * weight_decay)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        p = p - lr * (1 - betas[1] ** t) ** 0.5 / (1 - betas[0] ** t) * m / (v.sqrt() + eps)
    return p.float(), m.float(), v.float()


def stacked(experts, *shape):
    parameter = nn.Parameter(torch.randn(experts, *shape))
    parameter.num_experts = experts
    return parameter


def gradients_of(touched_per_step, parameter):
    """Random gradients that are zero for the experts which a step does not touch."""
    for touched in touched_per_step:
        gradient = torch.zeros_like(parameter)
        gradient[touched] = torch.randn_like(gradient[touched])
        yield gradient


def train(optimizer, parameter, gradients):
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("touched_only", [False, True])
def test_it_is_adam_when_every_expert_is_touched(touched_only):
    parameter = stacked(3, 5, 4)
    before = parameter.detach().clone()
    gradients = list(gradients_of([[0, 1, 2]] * 6, parameter))
    optimizer = ExpertAdam([parameter], touched_only=touched_only, **OPTIONS)
    train(optimizer, parameter, gradients)
    expected, m, v = adam_by_hand(before, gradients, **OPTIONS)
    torch.testing.assert_close(parameter.detach(), expected)
    torch.testing.assert_close(optimizer.state[parameter]["exp_avg"], m)
    torch.testing.assert_close(optimizer.state[parameter]["exp_avg_sq"], v)


@pytest.mark.parametrize("shape", [(7,), (4, 6)])
def test_touched_only_is_the_adam_of_the_steps_that_touched_an_expert(shape):
    experts, steps = 128, 12
    touched_per_step = [torch.randperm(experts)[:10].tolist() for _ in range(steps)]
    parameter = stacked(experts, *shape)
    before = parameter.detach().clone()
    gradients = list(gradients_of(touched_per_step, parameter))
    optimizer = ExpertAdam([parameter], touched_only=True, **OPTIONS)
    train(optimizer, parameter, gradients)
    for expert in range(experts):
        own = [
            gradient[expert] for gradient, touched in zip(gradients, touched_per_step, strict=True) if expert in touched
        ]
        expected = adam_by_hand(before[expert], own, **OPTIONS)
        state = optimizer.state[parameter]
        found = parameter.detach()[expert], state["exp_avg"][expert], state["exp_avg_sq"][expert]
        torch.testing.assert_close(found, expected)
        assert state["step"][expert] == len(own)
        assert own or torch.equal(found[0], before[expert])


def test_an_untouched_expert_moves_under_adam_and_stays_under_touched_only():
    parameters = {touched_only: stacked(2, 4) for touched_only in (False, True)}
    for touched_only, parameter in parameters.items():
        optimizer = ExpertAdam([parameter], touched_only=touched_only, **OPTIONS)
        train(optimizer, parameter, gradients_of([[0, 1]], parameter))
        after_one = parameter.detach().clone()
        first_moment = optimizer.state[parameter]["exp_avg"][1].clone()
        train(optimizer, parameter, gradients_of([[0]], parameter))
        assert not torch.equal(parameter[0], after_one[0])
        assert torch.equal(parameter[1], after_one[1]) == touched_only
        assert torch.equal(optimizer.state[parameter]["exp_avg"][1], first_moment) == touched_only


def test_it_is_the_adam_of_fairseq():
    fairseq_adam = pytest.importorskip("fairseq.optim.adam")
    ours = [nn.Parameter(torch.randn(*shape)) for shape in ((3, 5), (7,))]
    theirs = copy.deepcopy(ours)
    optimizers = ExpertAdam(ours, **OPTIONS), fairseq_adam.Adam(theirs, **OPTIONS)
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(ours, theirs)
    optimizers[0].load_state_dict(optimizers[1].state_dict())
    assert optimizers[0].state_dict()["state"].keys() == optimizers[1].state_dict()["state"].keys()
    assert optimizers[0].state[ours[0]]["step"] == 5


def test_gradients_are_divided_by_the_scale():
    a = nn.Parameter(torch.randn(50))
    b = copy.deepcopy(a)
    gradient = torch.randn(50)
    for scale in (4.0, torch.tensor(0.25)):
        a.grad, b.grad = gradient * scale, gradient.clone()
        first, second = ExpertAdam([a], **OPTIONS), ExpertAdam([b], **OPTIONS)
        first.step(scale=scale)
        second.step()
        torch.testing.assert_close(a, b)


def test_what_has_no_gradient_stays():
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    a.grad = torch.ones(2)
    ExpertAdam([a, b], **OPTIONS).step()
    assert (a < 1).all() and torch.equal(b, torch.ones(2))


def test_low_precision_has_moments_in_float32():
    wide = nn.Parameter(torch.randn(3, 4).bfloat16().float())
    low = nn.Parameter(wide.detach().bfloat16())
    wide.grad = torch.randn(3, 4).bfloat16().float()
    low.grad = wide.grad.bfloat16()
    optimizers = ExpertAdam([wide], **OPTIONS), ExpertAdam([low], **OPTIONS)
    for optimizer in optimizers:
        optimizer.step()
    assert torch.equal(low, wide.bfloat16())
    assert torch.equal(optimizers[0].state[wide]["exp_avg"], optimizers[1].state[low]["exp_avg"])


@pytest.mark.parametrize("then", [True, False])
def test_the_state_goes_on_after_saving_and_in_either_mode(then, tmp_path):
    parameter = stacked(4, 3)
    optimizer = ExpertAdam([parameter], touched_only=True, **OPTIONS)
    train(optimizer, parameter, gradients_of([[0, 1], [1], [3]], parameter))
    torch.save(optimizer.state_dict(), tmp_path / "state")
    resumed_parameter = stacked(4, 3)
    resumed_parameter.data.copy_(parameter.data)
    resumed = ExpertAdam([resumed_parameter], touched_only=then, **OPTIONS)
    resumed.load_state_dict(torch.load(tmp_path / "state"))
    optimizer.touched_only = then
    gradients = list(gradients_of([[2], [0, 3]], parameter))
    train(optimizer, parameter, gradients)
    train(resumed, resumed_parameter, gradients)
    assert torch.equal(parameter, resumed_parameter)
    steps = [2, 2, 1, 2] if then else [3, 4, 2, 3]
    assert resumed.state[resumed_parameter]["step"].tolist() == steps


def test_touched_only_goes_on_from_the_state_of_adam():
    parameter = stacked(3, 2)
    optimizer = ExpertAdam([parameter], **OPTIONS)
    train(optimizer, parameter, gradients_of([[0, 1, 2]] * 2, parameter))
    optimizer.touched_only = True
    train(optimizer, parameter, gradients_of([[1]], parameter))
    assert optimizer.state[parameter]["step"].tolist() == [2, 3, 2]


def test_one_number_far_back_counts_as_touched():
    gradient = torch.zeros(4, 3, LOOK)
    gradient[0, 0, 0] = 1.0
    gradient[2, 2, -1] = 1e-40
    gradient[3, 1, 1] = float("nan")
    assert touched_experts(gradient) == [0, 2, 3]
    assert touched_experts(torch.zeros(4, 3)) == []


def test_experts_without_tokens_are_those_left_alone():
    torch.manual_seed(1)
    experts = EXPERTS.build("ffn(count=8)", dim=16, ffn_dim=32)
    layer = MoELayer(ROUTERS.build("top_k(k=1)", dim=16, num_experts=8), experts, DISPATCHERS.build("sorted"))
    mark_stacked(layer)
    y, record = layer(torch.randn(5, 16))
    y.square().sum().backward()
    used = record.routing.expert_A.unique().tolist()
    assert 0 < len(used) < 8
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    ExpertAdam(layer.parameters(), touched_only=True, weight_decay=0.1, lr=0.1).step()
    for name, parameter in layer.experts.named_parameters(prefix="experts"):
        moved = (parameter != before[name]).flatten(1).any(1).nonzero().squeeze(1).tolist()
        assert moved == used, name


def test_moments_that_were_loaded_narrow_or_elsewhere_are_widened():
    """torch's `load_state_dict` gives moments the dtype of the parameter; fairseq's keeps them."""
    parameter = nn.Parameter(torch.randn(4, 8).bfloat16())
    optimizer = ExpertAdam([parameter])
    narrow = torch.zeros(4, 8, dtype=torch.bfloat16)
    optimizer.state[parameter] = {"step": 1, "exp_avg": narrow, "exp_avg_sq": narrow.clone()}
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert optimizer.state[parameter]["exp_avg"].dtype == torch.float32
