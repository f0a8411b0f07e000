"""What every regularizer promises.

Shape letters: N tokens, A assignments, D model width.
"""

import pytest
import torch

from moe_nmt.moe import REGULARIZERS
from moe_nmt.moe.routing import RoutingContext
from moe_nmt.registry import Spec
from tests.parts import EXPERT_COUNT, SUPPLIED, TOKENS, context, examples, make_layer, make_routing, tokens

SPECS = list(map(str, examples(REGULARIZERS)))
WITH_RATE = [
    str(Spec(example.name, example.options | {"p": 0.0}))
    for example in examples(REGULARIZERS)
    if "p" in REGULARIZERS.entry(example.name).options
]
every_regularizer = pytest.mark.parametrize("spec", SPECS)
in_training_and_evaluation = pytest.mark.parametrize("training", [True, False])
ROUTING = make_routing([(t, (t + s) % 4, 0.5 + 0.01 * t) for s in (0, 1) for t in range(TOKENS)], TOKENS, 4)
EMPTY = make_routing([], 0, 4)


def build(spec):
    return REGULARIZERS.build(spec, **SUPPLIED)


def check_form(changed, routing):
    for name in ("token_A", "expert_A", "weight_A"):
        assert getattr(changed, name).dtype == getattr(routing, name).dtype
        assert getattr(changed, name).shape == changed.token_A.shape
    assert changed.prob_NE.shape == routing.prob_NE.shape and changed.logit_NE.shape == routing.logit_NE.shape
    assert changed.weight_A.isfinite().all()


@every_regularizer
@in_training_and_evaluation
@pytest.mark.parametrize("routing", [ROUTING, EMPTY], ids=["some", "none"])
def test_form_is_kept(spec, training, routing):
    regularizer = build(spec).train(training)
    known = context(routing.prob_NE.shape[0])
    allowed_E = regularizer.on_context(known).allowed_E
    if allowed_E is not None:
        assert allowed_E.dtype == torch.bool and allowed_E.shape == (EXPERT_COUNT,) and allowed_E.any()
    for of_tokens in (known, RoutingContext()):
        check_form(regularizer.on_routing(routing, of_tokens), routing)
    for dtype in (torch.float32, torch.bfloat16):
        y_ND = tokens(routing.prob_NE.shape[0], dtype=dtype)
        changed_ND = regularizer.on_output(y_ND)
        assert changed_ND.shape == y_ND.shape and changed_ND.dtype == dtype and changed_ND.isfinite().all()


@pytest.mark.parametrize("spec", WITH_RATE)
@in_training_and_evaluation
def test_rate_zero_changes_nothing(spec, training):
    regularizer, y_ND = build(spec).train(training), tokens()
    assert regularizer.on_context(context()).allowed_E is None
    changed = regularizer.on_routing(ROUTING, context())
    assert all(torch.equal(a, b) for a, b in zip(changed[:5], ROUTING[:5], strict=True))
    assert torch.equal(regularizer.on_output(y_ND), y_ND)


@every_regularizer
def test_evaluation_is_deterministic(spec):
    layer, x_ND = make_layer(regularizers=[spec]).eval(), tokens()
    assert torch.equal(layer(x_ND)[0], layer(x_ND)[0])


@every_regularizer
def test_the_same_seed_gives_the_same_output_in_training(spec):
    layer, x_ND = make_layer(regularizers=[spec]), tokens()

    def run():
        torch.manual_seed(4)
        return layer(x_ND)[0]

    assert torch.equal(run(), run())


@every_regularizer
def test_gradients_go_through(spec):
    layer = make_layer(regularizers=[spec])
    layer(tokens())[0].square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@every_regularizer
def test_the_state_is_saved_and_loaded(spec):
    layer = make_layer(regularizers=[spec])
    for regularizer in layer.regularizers:
        if hasattr(regularizer, "set_num_updates"):
            regularizer.set_num_updates(123)
    resumed = make_layer(regularizers=[spec])
    resumed.load_state_dict(layer.state_dict())
    x_ND = tokens()
    assert torch.equal(resumed.eval()(x_ND)[0], layer.eval()(x_ND)[0])
