"""The model, the criterion and the batches inside one process."""

import argparse
import copy

import pytest
import torch
from fairseq.data import Dictionary

from moe_nmt.fairseq_plugin.config import ARCHITECTURES, TransformerMoEConfig, apply_architecture
from moe_nmt.fairseq_plugin.criterion import MoELabelSmoothedCrossEntropyCriterion
from moe_nmt.fairseq_plugin.inspection import describe
from moe_nmt.fairseq_plugin.layers import MoEFeedForward
from moe_nmt.fairseq_plugin.model import build_transformer_moe
from moe_nmt.moe import RoutingStatistics, record_routing
from moe_nmt.moe.parameters import count_parameters

PAD = 1


def dictionary(size: int = 40) -> Dictionary:
    result = Dictionary()
    for number in range(size - len(result)):
        result.add_symbol(f"w{number}")
    return result


def config(**options) -> TransformerMoEConfig:
    small = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", 2), ("embed_dim", 16), ("ffn_embed_dim", 24), ("attention_heads", 2))
    }
    return TransformerMoEConfig(**{**small, "moe_experts": "ffn(count=4)", "dropout": 0.0, **options})


def build(**options):
    words = dictionary()
    return build_transformer_moe(config(**options), words, words)


class Task:
    """What a criterion asks of a task: two languages, both directions."""

    target_dictionary = dictionary()
    lang_pairs = ("a-b", "b-a")

    @staticmethod
    def direction_index():
        return torch.tensor([[-1, 0], [1, -1]])


def batch(lengths=((5, 4), (3, 6), (4, 1)), extra_padding: int = 0) -> dict:
    """Sentence pairs of these (source, target) lengths, sources padded on the left as fairseq does."""
    generator = torch.Generator().manual_seed(0)
    width = [max(pair[side] for pair in lengths) + extra_padding for side in (0, 1)]
    source, target, previous = (torch.full((len(lengths), width[side]), PAD) for side in (0, 1, 1))
    for row, (source_length, target_length) in enumerate(lengths):
        source[row, width[0] - source_length :] = torch.randint(4, 40, (source_length,), generator=generator)
        words = torch.randint(4, 40, (target_length,), generator=generator)
        target[row, :target_length] = words
        previous[row, :target_length] = torch.cat([torch.tensor([2]), words[:-1]])
    return {
        "id": torch.arange(len(lengths)),
        "nsentences": len(lengths),
        "ntokens": sum(pair[1] for pair in lengths),
        "target": target,
        "net_input": {
            "src_tokens": source,
            "src_lengths": source.ne(PAD).sum(1),
            "prev_output_tokens": previous,
            "source_language": torch.tensor([0, 1, 0]),
            "target_language": torch.tensor([1, 0, 1]),
        },
    }


def criterion(losses: str = "[load_balancing(weight=0.5), z_loss(weight=0.1)]", smoothing: float = 0.1):
    return MoELabelSmoothedCrossEntropyCriterion(Task(), False, smoothing, moe_losses=losses)


def gradients(model, sample, losses="[load_balancing(weight=0.5), z_loss(weight=0.1)]"):
    model.zero_grad()
    loss, size, log = criterion(losses)(model, sample)
    (loss / size).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}, log


def test_nllb_has_its_published_size():
    text = describe("transformer_moe_nllb", 256_206)
    assert "total parameters: 54,500,569,088 (54.50B)" in text
    assert "active parameters: 3,750,785,024 (3.75B)" in text


def test_counts_of_the_small_model_by_hand():
    counts = count_parameters(build(moe_router="top_k(k=1)"))
    expert = 16 * 24 + 24 + 24 * 16 + 16
    assert counts.expert == 2 * 4 * expert
    assert counts.total - counts.active == 2 * 3 * expert


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_builds(name):
    args = argparse.Namespace()
    apply_architecture(args, name)
    with torch.device("meta"):
        model = build_transformer_moe(TransformerMoEConfig.from_args(args), dictionary(), dictionary())
    assert (count_parameters(model).expert > 0) == name.startswith("transformer_moe")


def test_the_decoder_is_as_wide_as_the_encoder_unless_told_otherwise():
    args = argparse.Namespace(encoder_embed_dim=96, encoder_ffn_embed_dim=200, decoder_ffn_embed_dim=100)
    apply_architecture(args, "transformer_moe_tiny")
    assert (args.decoder_embed_dim, args.decoder_ffn_embed_dim, args.decoder_layers) == (96, 100, 2)


@pytest.mark.parametrize(
    ("options", "encoder", "decoder"),
    [
        ({"moe_freq": 1}, [0, 1, 2, 3], [0, 1, 2, 3]),
        ({"moe_freq": 2}, [1, 3], [1, 3]),
        ({"moe_freq": 4}, [3], [3]),
        ({"moe_freq": 0}, [], []),
        ({"moe_freq": 2, "decoder_moe_freq": 0}, [1, 3], []),
        ({"moe_freq": 0, "encoder_moe_freq": 3}, [2], []),
    ],
)
def test_every_nth_layer_is_sparse(options, encoder, decoder):
    model = build(encoder_layers=4, decoder_layers=4, **options)
    for stack, expected in ((model.encoder, encoder), (model.decoder, decoder)):
        sparse = [i for i, layer in enumerate(stack.layers) if isinstance(layer.feed_forward, MoEFeedForward)]
        assert sparse == expected


@pytest.mark.parametrize("normalize_before", [True, False])
@pytest.mark.parametrize("router", ["top_k(k=1)", "top_k(k=2)"])
def test_decoding_step_by_step_equals_the_full_forward_pass(router, normalize_before):
    model = build(moe_router=router, moe_freq=1, decoder_normalize_before=normalize_before).eval()
    sample = batch(((5, 6), (3, 6), (4, 6)))["net_input"]
    encoder_out = model.encoder(sample["src_tokens"])
    full, _ = model.decoder(sample["prev_output_tokens"], encoder_out)
    state: dict = {}
    for length in range(1, 7):
        step, _ = model.decoder(sample["prev_output_tokens"][:, :length], encoder_out, incremental_state=state)
        torch.testing.assert_close(step[:, -1], full[:, length - 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("router", ["top_k(k=2)", "top_k(k=1, capacity_factor=0.75)"])
def test_a_later_token_changes_nothing_before_it(router):
    """Nor, at k = 1, does it displace an earlier one from a full expert: capacity goes by position."""
    model = build(moe_router=router, moe_freq=1).train()
    sample = batch(((5, 6), (3, 6), (4, 6)))["net_input"]
    encoder_out = model.encoder(sample["src_tokens"])
    before, _ = model.decoder(sample["prev_output_tokens"], encoder_out)
    changed = sample["prev_output_tokens"].clone()
    changed[:, -1] = 7
    after, _ = model.decoder(changed, encoder_out)
    torch.testing.assert_close(after[:, :-1], before[:, :-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("router", ["top_k(k=2)", "top_k(k=2, capacity_factor=0.5)"])
def test_padding_changes_no_loss_no_statistic_and_no_gradient(router):
    model = build(moe_router=router, moe_freq=1)
    narrow, narrow_log = gradients(model, batch())
    wide, wide_log = gradients(model, batch(extra_padding=5))
    for key in narrow_log:
        torch.testing.assert_close(torch.as_tensor(wide_log[key]), torch.as_tensor(narrow_log[key]))
    for name in narrow:
        torch.testing.assert_close(wide[name], narrow[name], rtol=1e-4, atol=1e-5, msg=name)


def test_activation_checkpointing_keeps_the_gradient_of_the_routing_losses():
    plain = build(moe_freq=1, moe_regularizers="[eom(p=0.3), fom(p=0.1)]", dropout=0.1)
    recomputing = copy.deepcopy(plain)
    recomputing.encoder.checkpoint_activations = recomputing.decoder.checkpoint_activations = True
    results = []
    for model in (plain, recomputing):
        torch.manual_seed(1)
        results.append(gradients(model, batch())[0])
    for name in results[0]:
        assert torch.equal(results[0][name], results[1][name]), name
    without = gradients(plain.eval(), batch(), losses="")[0]
    gate = "encoder.layers.0.feed_forward.moe.router.gate.weight"
    assert not torch.allclose(gradients(plain.eval(), batch())[0][gate], without[gate])


def test_the_loss_is_the_translation_loss_plus_weighted_routing_losses():
    model = build(moe_freq=1).eval()
    sample = batch()
    loss, size, log = criterion()(model, sample)
    plain, _, plain_log = criterion("")(model, sample)
    expected = plain + size * (0.5 * log["moe_load_balancing_loss"] + 0.1 * log["moe_z_loss_loss"])
    torch.testing.assert_close(loss, expected)
    assert log["nll_loss"] == plain_log["nll_loss"]
    assert size == sample["ntokens"] == 11


def test_the_loss_of_each_direction_by_hand():
    model = build().eval()
    sample = batch()
    _, _, log = criterion("", smoothing=0.0)(model, sample)
    log_probs = model(**sample["net_input"])[0].log_softmax(-1)
    nll = -log_probs.gather(2, sample["target"][..., None])[..., 0].masked_fill(sample["target"].eq(PAD), 0)
    torch.testing.assert_close(log["direction_nll"], torch.stack([nll[0].sum() + nll[2].sum(), nll[1].sum()]))
    assert log["direction_tokens"].tolist() == [5, 6]
    torch.testing.assert_close(log["nll_loss"], log["direction_nll"].sum())


def test_a_dense_model_has_no_routing_to_log():
    loss, _, log = criterion()(build(moe_freq=0), batch())
    assert loss.isfinite() and not any(key.startswith("moe_") for key in log)


def test_layers_know_tokens_and_languages_also_in_beam_search():
    model = build().eval()
    sample = batch()["net_input"]
    with record_routing(model) as records:
        model(**sample)
    contexts = {name: record.context for name, record in records}
    encoder, decoder = contexts.values()
    real = sample["src_tokens"].T.ne(PAD)
    assert encoder.token_N.tolist() == sample["src_tokens"].T[real].tolist()
    expected = sample["source_language"].expand_as(real)[real]
    assert encoder.source_language_N.tolist() == expected.tolist()
    assert decoder.target_language_N.numel() == 11
    statistics = RoutingStatistics(2)
    statistics.update(records)
    assert statistics.load(statistics.layers[0], "source").sum(1).tolist() == [2 * 9, 2 * 3]

    encoder_out = model.encoder(**{k: v for k, v in sample.items() if k != "prev_output_tokens"})
    beams = model.encoder.reorder_encoder_out(encoder_out, torch.tensor([0, 0, 1, 1, 2, 2]))
    with record_routing(model) as records:
        model.decoder(torch.full((6, 1), 2), beams, incremental_state={})
    assert records[0].record.context.target_language_N.tolist() == [1, 1, 0, 0, 1, 1]


def test_attention_to_the_source_is_there_when_asked_for():
    model = build().eval()
    model.make_generation_fast_(need_attn=True)
    sample = batch()["net_input"]
    _, extra = model(**sample)
    attention = extra["attn"][0]
    torch.testing.assert_close(attention.sum(-1), torch.ones(3, 6))


def test_separate_embeddings_and_learned_positions():
    model = build(
        share_all_embeddings=False,
        share_decoder_input_output_embed=False,
        encoder_learned_pos=True,
        layernorm_embedding=True,
    )
    names = dict(model.named_parameters())
    assert {"encoder.embedding.embed_tokens.weight", "decoder.embedding.embed_tokens.weight"} <= names.keys()
    assert "encoder.embedding.embed_positions.weight" in names and "decoder.output_projection.weight" in names
    assert all(g.isfinite().all() for g in gradients(model, batch())[0].values())
