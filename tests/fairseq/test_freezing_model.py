"""Freezing recipes on the real model: counts by hand, and what optimizers leave alone."""

import copy

import pytest
import torch

from moe_nmt.fairseq_plugin.model import build_transformer_moe
from moe_nmt.training.expert_adam import ExpertAdam, mark_stacked
from moe_nmt.training.freezing import FREEZING, PARTS, count_trained, rest_frozen
from tests.fairseq.test_model import batch, config, dictionary

D, F, LAYERS, BOTTLENECK = 16, 24, 2, 4
ATTENTION, NORM, FFN = 4 * (D * D + D), 2 * D, 2 * D * F + F + D
ENCODER = LAYERS * (ATTENTION + FFN + 2 * NORM) + NORM
DECODER_LAYER = 2 * ATTENTION + FFN + 3 * NORM
DECODER = LAYERS * DECODER_LAYER + NORM
ADAPTERS = 2 * LAYERS * 2 * (NORM + 2 * D * BOTTLENECK + BOTTLENECK + D)  # two sides, two languages

RECIPES = {
    "freeze_encoder": DECODER,
    "freeze_decoder": ENCODER + LAYERS * ATTENTION,
    "ft_enc_attn": LAYERS * (ATTENTION + 3 * NORM) + NORM,
    "ft_self_attn": LAYERS * (ATTENTION + 3 * NORM) + NORM,
    "last_layers(count=1)": DECODER_LAYER + NORM,
    "last_layers(count=2)": DECODER,
    "lna": 2 * LAYERS * ATTENTION + LAYERS * 2 * NORM + NORM + LAYERS * 3 * NORM + NORM,
}
"""How many numbers each trains of a dense pre-norm model, without adapters."""

EVERYTHING = {
    "moe_freq": 2,
    "moe_branch": "conditional",
    "adapters": f"bottleneck(dim={BOTTLENECK})",
    "encoder_learned_pos": True,
    "decoder_learned_pos": True,
    "layernorm_embedding": True,
}


def build(**options):
    model = build_transformer_moe(
        config(**options), dictionary(), dictionary(), languages=["a", "b"], directions=["a-b", "b-a"]
    )
    mark_stacked(model)
    return model


def apply(recipe, model):
    FREEZING.build(recipe).apply(model)
    return model


def count(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(("recipe", "expected"), RECIPES.items())
@pytest.mark.parametrize("adapters", [False, True])
def test_numbers_of_trained_parameters_by_hand(recipe, expected, adapters):
    model = build(moe_freq=0, adapters=EVERYTHING["adapters"] if adapters else "")
    assert count(apply(recipe, model)) == expected + adapters * ADAPTERS


@pytest.mark.parametrize(
    ("recipe", "attention", "other"),
    [("ft_enc_attn", "encoder_attn", "self_attn"), ("ft_self_attn", "self_attn", "encoder_attn")],
)
def test_which_attention_is_trained(recipe, attention, other):
    decoder = apply(recipe, build(moe_freq=0)).decoder
    for layer in decoder.layers:
        assert all(p.requires_grad for p in getattr(layer, attention).parameters())
        assert not any(p.requires_grad for p in getattr(layer, other).parameters())


def test_the_last_layers_are_the_last():
    """Also of more than ten, where names do not sort by number."""
    model = apply("last_layers(count=3)", build(decoder_layers=12, moe_freq=0))
    trained = [all(p.requires_grad for p in layer.parameters()) for layer in model.decoder.layers]
    assert trained == [False] * 9 + [True] * 3


@pytest.mark.parametrize("part", PARTS)
def test_a_model_that_has_everything_has_every_part(part):
    assert count(apply(f"train_only(parts=[{part}])", build(**EVERYTHING))) > 0


def test_parts_by_hand():
    model, experts = build(**EVERYTHING), 4
    sizes = {part: count(apply(f"train_only(parts=[{part}])", model)) for part in PARTS}
    positions = sum(p.numel() for name, p in model.named_parameters() if "embed_positions" in name)
    assert sizes["embeddings"] == 40 * D + positions + 2 * NORM
    assert sizes["self_attention"] == 2 * LAYERS * ATTENTION
    assert sizes["cross_attention"] == LAYERS * ATTENTION
    assert sizes["layer_norms"] == LAYERS * (2 + 3) * NORM + 2 * NORM
    assert sizes["feed_forward"] == 2 * FFN
    assert sizes["experts"] == 2 * experts * FFN
    assert sizes["routers"] == 2 * experts * D
    assert sizes["branches"] == 2 * (FFN + D + 1)
    assert sizes["adapters"] == ADAPTERS
    in_mixture = (experts * FFN) + experts * D + (FFN + D + 1)
    assert sizes["encoder"] == ENCODER - FFN + in_mixture
    assert sizes["decoder"] == DECODER - FFN + in_mixture
    assert "other" not in count_trained(model)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, ExpertAdam])
@pytest.mark.parametrize(
    "recipe", [*RECIPES, "train_only(parts=[adapters])", "train_only(parts=[routers])", "freeze(parts=[experts])"]
)
@pytest.mark.parametrize("share", [True, False])
def test_frozen_parameters_stay_bit_for_bit_and_the_others_move(recipe, kind, share):
    model = build(**EVERYTHING, share_all_embeddings=share, share_decoder_input_output_embed=share)
    apply(recipe, model).train()
    start = copy.deepcopy(dict(model.named_parameters()))
    optimizer = kind([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        logits, _ = model(**batch()["net_input"])
        logits.logsumexp(-1).sum().backward()
        optimizer.step()
    for name, p in model.named_parameters():
        assert torch.equal(p, start[name]) != p.requires_grad, name
        assert (p.grad is None) != p.requires_grad, name
        assert (p in optimizer.state) == p.requires_grad, name


@pytest.mark.parametrize("dropout", [True, False])
def test_a_frozen_encoder_of_a_model_in_training_has_dropout_unless_told_otherwise(dropout):
    model = build(**EVERYTHING, dropout=0.3, attention_dropout=0.3, moe_regularizers="[eom(p=0.5)]")
    recipe = FREEZING.build(f"freeze_encoder(dropout={dropout})")
    recipe.apply(model)
    model.train()
    if not recipe.dropout:
        rest_frozen(model)
    inputs = batch()["net_input"]
    previous = inputs.pop("prev_output_tokens")
    one, two = (model.encoder(**inputs) for _ in range(2))
    assert torch.equal(one["encoder_out"][0], two["encoder_out"][0]) != dropout
    logits = [model.decoder(previous, one)[0] for _ in range(2)]
    assert not torch.equal(*logits)
    model.eval()
    evaluated = model.encoder(**inputs)["encoder_out"][0]
    assert torch.equal(one["encoder_out"][0], evaluated) != dropout


@pytest.mark.parametrize("checkpoint", [False, True])
def test_gradients_are_those_of_the_unfrozen_model(checkpoint):
    model = build(**EVERYTHING, checkpoint_activations=checkpoint)
    gradients = []
    for recipe in (None, "ft_enc_attn"):
        if recipe is not None:
            apply(recipe, model).zero_grad()
        torch.manual_seed(0)
        model(**batch()["net_input"])[0].logsumexp(-1).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    everything, some = gradients
    assert 0 < len(some) < len(everything)
    for name, gradient in some.items():
        torch.testing.assert_close(gradient, everything[name], msg=name)
