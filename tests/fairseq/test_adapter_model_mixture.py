"""MoV and MoLoRA inside the real model."""

import copy

import pytest
import torch

from moe_nmt.adapters.mixture import VectorMixture
from tests.fairseq import test_adapter_model
from tests.fairseq.test_model import batch

MOV, MOLORA = "mov(count=3)", "molora(count=3, rank=2)"
both = pytest.mark.parametrize("spec", [MOV, MOLORA])


def build(spec="", trained=True, **options):
    """The same base for every spec, dense unless told otherwise; adapters as after training, or as at the start."""
    return test_adapter_model.build(spec, trained, std=0.2, **{"moe_freq": 0, **options}).eval()


def sentences(source=(0, 1, 2), target=(1, 0, 0)):
    languages = {"source_language": torch.tensor(source), "target_language": torch.tensor(target)}
    return batch(((5, 6), (3, 6), (4, 6)))["net_input"] | languages


def logits(model, sample):
    return model(**sample)[0]


@both
@pytest.mark.parametrize("moe_freq", [0, 2])
def test_at_the_start_the_model_is_its_base(spec, moe_freq):
    base, adapted = build(moe_freq=moe_freq), build(spec, trained=False, moe_freq=moe_freq)
    assert torch.equal(logits(adapted, sentences()), logits(base, sentences()))


def test_one_expert_of_molora_is_a_change_of_every_weight():
    """LoRA can be folded: W + (alpha / rank) B A."""
    adapted, base = build("molora(count=1, rank=2, alpha=6.0)"), build()
    with torch.no_grad():
        for side in ("encoder", "decoder"):
            for layer, sites in zip(getattr(base, side).layers, getattr(adapted.adapters, side), strict=True):
                for name, (inputs, outputs) in layer.shape.linear.items():
                    site = sites[name.replace(".", "_")]
                    change = 3 * site.up_EKO[0].T @ site.down_EKI[0]
                    assert change.shape == (outputs, inputs)
                    layer.get_submodule(name).weight.add_(change)
    torch.testing.assert_close(logits(adapted, sentences()), logits(base, sentences()), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(base, sentences()), logits(build(), sentences()), atol=0.1)


def test_one_expert_of_mov_is_a_change_of_every_weight():
    """(IA)^3 can be folded: into rows of the maps of keys and values, and into columns of the second map."""
    adapted, base = build("mov(count=1)"), build()
    with torch.no_grad():
        for side in ("encoder", "decoder"):
            for layer, sites in zip(getattr(base, side).layers, getattr(adapted.adapters, side), strict=True):
                for key, site in sites.items():
                    vector = 1 + site.offset_HED.flatten()
                    if key == "feed_forward_inner":
                        layer.feed_forward.fc2.weight.mul_(vector)
                    else:
                        linear = getattr(layer, key[: -len("_k_proj")])._modules[key[-len("k_proj") :]]
                        linear.weight.mul_(vector[:, None])
                        linear.bias.mul_(vector)
    torch.testing.assert_close(logits(adapted, sentences()), logits(base, sentences()), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(base, sentences()), logits(build(), sentences()), atol=0.1)


@both
@pytest.mark.parametrize("languages", ["", ", languages=[c]"])
def test_decoding_step_by_step_equals_the_full_forward_pass(spec, languages):
    """With one hypothesis per sentence, and with three in adjacent rows."""
    model, sample = build(spec[:-1] + languages + ")"), sentences()
    tokens = sample.pop("prev_output_tokens")
    encoder_out = model.encoder(**sample)
    full = model.decoder(tokens, encoder_out)[0]
    for hypotheses in (1, 3):
        rows, state = tokens.repeat_interleave(hypotheses, 0), {}
        for length in range(1, tokens.shape[1] + 1):
            step = model.decoder(rows[:, :length], encoder_out, incremental_state=state)[0]
            expected = full[:, length - 1].repeat_interleave(hypotheses, 0)
            torch.testing.assert_close(step[:, -1], expected, rtol=1e-4, atol=1e-5)


@both
def test_sentences_of_other_languages_are_translated_as_by_the_base(spec):
    """Those of the batch bit for bit; so is a batch of none but these."""
    model, base = build(f"{spec[:-1]}, languages=[c])"), build()
    ours, theirs = logits(model, sentences()), logits(base, sentences())
    assert torch.equal(ours[:2], theirs[:2])
    assert not torch.isclose(ours[2], theirs[2]).all(-1).any()
    others = sentences(source=(0, 1, 0), target=(1, 0, 0))
    assert torch.equal(logits(model, others), logits(base, others))


@both
def test_a_sentence_is_translated_alike_in_every_batch(spec):
    model, sample = build(f"{spec[:-1]}, languages=[c, b])"), sentences(source=(0, 0, 2), target=(0, 1, 0))
    together = logits(model, sample)
    for place in range(3):
        alone = logits(model, {name: value[place : place + 1] for name, value in sample.items()})
        torch.testing.assert_close(alone[0], together[place], rtol=1e-4, atol=1e-5)


def gradients(model, sample):
    model.train().zero_grad()
    logits(model, sample).square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@both
def test_every_parameter_learns_also_with_recomputed_activations(spec):
    spec = f"{spec[:-1]}, languages=[c])"
    kept = gradients(build(spec), sentences())
    for name, gradient in kept.items():
        assert gradient is not None and gradient.any(), name
    torch.testing.assert_close(gradients(build(spec, checkpoint_activations=True), sentences()), kept)


@both
def test_only_the_adapters_are_added_to_the_parameters(spec):
    adapted, base = dict(build(spec).named_parameters()), dict(build().named_parameters())
    added = {name for name in adapted if name not in base}
    assert base.keys() <= adapted.keys() and added == {name for name in adapted if name.startswith("adapters.")}
    assert all(torch.equal(parameter, adapted[name]) for name, parameter in base.items())


@both
def test_bfloat16_copies_and_the_meta_device(spec):
    model = build(spec)
    exact = logits(model, sentences())
    assert torch.equal(logits(copy.deepcopy(model), sentences()), exact)
    half = logits(copy.deepcopy(model).bfloat16(), sentences())
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).norm() < 0.05 * exact.norm()
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in build(spec, trained=False).named_parameters()}
    assert shapes == {name: parameter.shape for name, parameter in model.named_parameters()}


@both
def test_the_completed_spec_makes_the_same_adapters_among_other_languages(spec):
    model = build(spec)
    later = build(str(model.adapters_spec), languages=["c", "new", "b", "a"])
    later.load_state_dict(model.state_dict())
    theirs = logits(later, sentences(source=(3, 2, 0), target=(2, 3, 3)))
    assert torch.equal(theirs, logits(model, sentences()))
    unheard = sentences(source=(1, 1, 1), target=(1, 1, 1))
    assert torch.equal(logits(later, unheard), logits(build(), unheard))


def test_in_a_sparse_layer_only_attention_is_adapted():
    model = build(MOV, moe_freq=2)
    assert "feed_forward_inner" in model.adapters.encoder[0]
    assert set(model.adapters.decoder[1]) == {
        f"{attention}_{name}" for attention in ("self_attn", "encoder_attn") for name in ("k_proj", "v_proj")
    }
    assert isinstance(model.adapters.decoder[1]["self_attn_k_proj"], VectorMixture)
