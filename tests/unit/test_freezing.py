"""Freezing recipes on a toy with the model's names; tests/fairseq/test_freezing_model.py has the model itself."""

import pytest
import torch
from torch import nn

from moe_nmt.errors import UserError
from moe_nmt.registry import RegistryError
from moe_nmt.training.freezing import FREEZING, PARTS, count_trained, describe_trained, rest_frozen
from tests.parts import make_layer

DIM, WORDS = 8, 10
KINDS = ("weight", "bias")


class Block(nn.Module):
    """A module of the named modules; forward applies the first of them, then dropout."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(next(self.children())(x))


def attention():
    return Block(q_proj=nn.Linear(DIM, DIM), out_proj=nn.Linear(DIM, DIM))


def layer(cross, feed_forward):
    attentions = {"self_attn": attention()} | ({"encoder_attn": attention()} if cross else {})
    norms = {f"{name}_layer_norm": nn.LayerNorm(DIM) for name in (*attentions, "final")}
    return Block(**attentions, **norms, feed_forward=feed_forward)


def stack(cross, embed):
    dense = Block(fc1=nn.Linear(DIM, DIM), fc2=nn.Linear(DIM, DIM))
    mixture = Block(moe=make_layer(branch="conditional", dim=DIM))
    layers = nn.ModuleList([layer(cross, dense), layer(cross, mixture)])
    embedding = Block(embed_tokens=embed, embed_positions=nn.Embedding(5, DIM), layer_norm=nn.LayerNorm(DIM))
    return Block(embedding=embedding, layers=layers, layer_norm=nn.LayerNorm(DIM))


def toy(adapters=True):
    """Two layers a side, the second a mixture with a branch; token embeddings and output are one parameter."""
    embed = nn.Embedding(WORDS, DIM)
    model = Block(encoder=stack(False, embed), decoder=stack(True, embed))
    model.decoder.output_projection = nn.Linear(DIM, WORDS, bias=False)
    model.decoder.output_projection.weight = embed.weight
    if adapters:
        model.adapters = nn.ModuleDict({"encoder": nn.Linear(DIM, DIM), "decoder": nn.Linear(DIM, DIM)})
    return model


def trained(model):
    return {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}


def frozen(model):
    return {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}


def apply(recipe, model):
    FREEZING.build(recipe).apply(model)
    return model


@pytest.mark.parametrize("part", PARTS)
def test_freezing_a_part_is_the_complement_of_training_it(part):
    alone = trained(apply(f"train_only(parts=[{part}])", toy()))
    assert alone and alone == frozen(apply(f"freeze(parts=[{part}])", toy()))


def test_what_is_in_two_parts():
    """Encoder, decoder, embeddings and adapters divide a model; so do the kinds of block, embeddings and adapters."""
    names = {part: trained(apply(f"train_only(parts=[{part}])", toy())) for part in PARTS}
    everything = {name for name, _ in toy().named_parameters(remove_duplicate=False)}
    outer = ["encoder", "decoder", "embeddings", "adapters"]
    inner = [part for part in PARTS if part not in ("encoder", "decoder")]
    for division in (outer, inner):
        assert sum(len(names[part]) for part in division) == len(everything)
        assert set().union(*(names[part] for part in division)) == everything
    assert names["cross_attention"] < names["decoder"]
    assert "decoder.layers.0.encoder_attn_layer_norm.weight" in names["layer_norms"]
    assert "encoder.layer_norm.bias" in names["layer_norms"] & names["encoder"]
    assert "encoder.embedding.layer_norm.weight" in names["embeddings"] - names["layer_norms"]
    assert "decoder.layers.1.feed_forward.moe.branch.ffn.fc1.weight" in names["branches"] - names["feed_forward"]


def test_parts_and_pattern_add_up():
    both = trained(apply(r"train_only(parts=[adapters], match=r'layers\.1\.self_attn\.q_')", toy()))
    projections = {f"{side}.layers.1.self_attn.q_proj.{kind}" for side in ("encoder", "decoder") for kind in KINDS}
    assert both == projections | {f"adapters.{side}.{kind}" for side in ("encoder", "decoder") for kind in KINDS}
    assert frozen(apply(r"freeze(match=r'^adapters\.')", toy())) == {name for name in both if "adapters" in name}


def test_a_shared_parameter_is_trained_only_if_all_its_names_are():
    embed = {f"{side}.embedding.embed_tokens.weight" for side in ("encoder", "decoder")}
    embed.add("decoder.output_projection.weight")
    assert embed <= trained(apply("train_only(parts=[embeddings])", toy()))
    assert trained(apply("train_only(match='embed_tokens', parts=[routers])", toy())).isdisjoint(embed)
    assert embed == frozen(apply("freeze(match='output_projection')", toy()))


def test_a_second_recipe_replaces_the_first():
    model = apply("lna", apply("freeze_encoder", toy()))
    assert trained(model) == trained(apply("lna", toy()))


@pytest.mark.parametrize("recipe", ["freeze_encoder", "freeze_decoder", "ft_enc_attn", "ft_self_attn", "lna"])
def test_named_recipes_train_adapters_and_leave_embeddings(recipe):
    def adapters(names):
        return {name for name in names if name.startswith("adapters.")}

    model = apply(recipe, toy())
    without = trained(apply(recipe, toy(adapters=False)))
    assert trained(model) - adapters(trained(model)) == without and without
    assert len(adapters(trained(model))) == 4
    assert not [name for name in trained(model) if "embed" in name or "output_projection" in name]


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ("freeze_encodr", "did you mean 'freeze_encoder'?"),
        ("train_only(parts=[adaptors])", "no part of a model is called 'adaptors'; did you mean 'adapters'?"),
        ("freeze(parts=[3])", "a list, each entry a word"),
        ("freeze(match='(')", "match='(' is no regular expression (missing )"),
        ("last_layers(count=0)", "count must be at least 1, not 0"),
        ("lna(parts=[adapters])", "has no option 'parts'"),
    ],
)
def test_mistakes_are_refused(recipe, reason):
    with pytest.raises(RegistryError, match="freezing recipe") as caught:
        FREEZING.build(recipe)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ("train_only", "needs parts=[…], of encoder, decoder, embeddings, "),
        ("freeze(parts=[])", "needs parts=[…], of encoder, decoder, embeddings, "),
        (
            "train_only(parts=[layer_norms, adapters])",
            "the model has no adapters; leave them out, or build it with them",
        ),
        ("freeze(parts=[adapters])", "It has: encoder, decoder, embeddings, self_attention, "),
        (
            "freeze(match='decoder.layers.0.encoder_attn.q_project')",
            "match='decoder.layers.0.encoder_attn.q_project' is found in no parameter's name; change it to fit "
            "names such as decoder.layers.0.encoder_attn.q_proj.weight.",
        ),
        ("freeze(match='')", "nothing is left to train; freeze less"),
        (
            "train_only(match='output_projection')",
            "since encoder.embedding.embed_tokens.weight and decoder.embedding.embed_tokens.weight, which the recipe "
            "freezes, are other names of decoder.output_projection.weight; freeze less",
        ),
        ("last_layers", "count=3 is more than the decoder's 2 layers; give at most that"),
    ],
)
def test_what_a_model_does_not_have_is_refused_and_nothing_is_set(recipe, reason):
    model = toy(adapters=False)
    with pytest.raises(UserError) as caught:
        apply(recipe, model)
    assert reason in str(caught.value)
    assert not frozen(model)


def test_only_what_is_wholly_frozen_rests():
    model = apply("train_only(parts=[cross_attention, adapters])", toy()).train()
    rest_frozen(model)
    assert not any(module.training for module in model.encoder.modules())
    decoder = model.decoder
    first = decoder.layers[0]
    assert all(module.training for module in (model, decoder, first, first.dropout, *first.encoder_attn.modules()))
    assert not any(module.training for module in (*first.self_attn.modules(), *first.feed_forward.modules()))
    assert not any(module.training for module in (*decoder.embedding.modules(), first.final_layer_norm))
    assert all(module.training for module in model.adapters.modules())


def test_a_wholly_frozen_module_of_a_model_in_training_has_no_dropout():
    model = apply("freeze(parts=[encoder, embeddings])", toy()).train()
    attention, x = model.encoder.layers[0].self_attn, torch.randn(16, DIM)
    assert not torch.equal(attention(x), attention(x))
    rest_frozen(model)
    assert torch.equal(attention(x), attention(x))
    still_trained = model.decoder.layers[0].self_attn
    assert not torch.equal(still_trained(x), still_trained(x))


def test_every_parameter_is_counted_in_one_row():
    model = apply("ft_enc_attn", toy())
    counts = count_trained(model)
    assert sum(count.total for count in counts.values()) == sum(p.numel() for p in model.parameters())
    linear, norm = DIM * DIM + DIM, 2 * DIM
    assert counts["adapters"] == (2 * linear, 2 * linear)
    assert counts["embeddings"] == (0, WORDS * DIM + 2 * (5 * DIM + norm))
    assert counts["encoder layer_norms"] == (0, 5 * norm)
    assert counts["decoder layer_norms"] == (7 * norm, 7 * norm)
    assert counts["decoder cross_attention"] == (4 * linear, 4 * linear)
    assert counts["decoder self_attention"] == counts["encoder self_attention"] == (0, 4 * linear)
    assert counts["encoder feed_forward"] == (0, 2 * linear)
    assert "encoder cross_attention" not in counts and "other" not in counts


def test_the_report():
    model = nn.Module()
    model.decoder = nn.Module()
    model.decoder.layer_norm = nn.LayerNorm(600)
    model.adapters = nn.ParameterList([nn.Parameter(torch.zeros(30)), nn.Parameter(torch.zeros(2))])
    model.probe = nn.Linear(9, 1)
    apply("freeze(match='layer_norm|adapters.0')", model)
    assert describe_trained(model).splitlines() == [
        "trained 12 of 1,242 parameters (1.0 %)",
        "  adapters                 2 of    32    6.2 %",
        "  decoder layer_norms      0 of 1,200    0.0 %",
        "  other                   10 of    10  100.0 %",
    ]
