"""Attention and beam search against fairseq's own."""

import copy

import pytest
import torch
from fairseq.modules import MultiheadAttention
from fairseq.sequence_generator import SequenceGenerator

from moe_nmt.fairseq_plugin.attention import SelfAttention, SourceAttention
from moe_nmt.fairseq_plugin.generator import BeamSearchGenerator
from moe_nmt.fairseq_plugin.model import hide
from moe_nmt.moe import record_routing
from tests.fairseq.test_model import PAD, batch, build, dictionary

T, S, B, D, HEADS = 5, 7, 3, 16, 2


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pair(kind, **options):
    """Our attention and fairseq's with the same weights."""
    source_dim = options.get("kdim", D)
    ours = kind(D, HEADS) if kind is SelfAttention else kind(D, HEADS, source_dim)
    theirs = MultiheadAttention(D, HEADS, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def padding(width: int) -> torch.Tensor:
    return torch.arange(width) >= torch.tensor([width, width - 2, width - 1])[:, None]


def test_weights_are_drawn_as_fairseq_draws_them():
    for kind, options in ((SelfAttention, {"self_attention": True}), (SourceAttention, {"kdim": 24, "vdim": 24})):
        torch.manual_seed(3)
        ours = kind(D, HEADS) if kind is SelfAttention else kind(D, HEADS, 24)
        torch.manual_seed(3)
        theirs = MultiheadAttention(D, HEADS, **options).state_dict()
        assert ours.state_dict().keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("causal", [False, True])
def test_self_attention_and_its_gradients(causal):
    ours, theirs = pair(SelfAttention, self_attention=True)
    future = torch.full((T, T), float("-inf")).triu(1) if causal else None
    results = []
    for module in (ours, theirs):
        x = torch.randn(T, B, D, generator=torch.Generator().manual_seed(1)).requires_grad_()
        if module is ours:
            y = ours(x, hide(padding(T), x) + (0 if future is None else future))
        else:
            y, _ = theirs(x, x, x, key_padding_mask=padding(T), attn_mask=future, need_weights=False)
        y.square().sum().backward()
        results.append([y, x.grad, *(parameter.grad for parameter in module.parameters())])
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("need_weights", [False, True])
def test_attention_to_the_source_and_its_gradients(need_weights):
    ours, theirs = pair(SourceAttention, kdim=24, vdim=24, encoder_decoder_attention=True)
    results = []
    for module in (ours, theirs):
        generator = torch.Generator().manual_seed(1)
        x, source = (torch.randn(*shape, generator=generator) for shape in ((T, B, D), (S, B, 24)))
        x.requires_grad_()
        if module is ours:
            y, weights = ours(x, source, hide(padding(S), x), need_weights=need_weights)
        else:
            mask = padding(S)
            y, weights = theirs(x, source, source, key_padding_mask=mask, need_weights=need_weights, static_kv=True)
        y.square().sum().backward()
        results.append([y, x.grad, *(parameter.grad for parameter in module.parameters())])
        results[-1] += [weights] if need_weights else []
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_decoding_steps_with_reordered_hypotheses():
    own, own_theirs = pair(SelfAttention, self_attention=True)
    to_source, to_source_theirs = pair(SourceAttention, encoder_decoder_attention=True)
    source, beam = torch.randn(S, B, D), 2
    wide, mask = source.repeat_interleave(beam, 1), padding(S)
    state, theirs, wide_mask = {}, {}, mask.repeat_interleave(beam, 0)
    for order in ([1, 0, 2, 2, 5, 4], [0, 0, 3, 3, 4, 5], None):
        x = torch.randn(1, wide.shape[1], D)
        expected, _ = own_theirs(x, x, x, incremental_state=theirs)
        torch.testing.assert_close(own(x, state=state), expected, rtol=1e-4, atol=1e-5)
        y, weights = to_source(x, source, hide(mask, x), state, need_weights=True)
        options = {"incremental_state": theirs, "static_kv": True, "key_padding_mask": wide_mask}
        expected, expected_weights = to_source_theirs(x, wide, wide, **options)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(weights, expected_weights, rtol=1e-4, atol=1e-5)
        if order:
            own.reorder(state, torch.tensor(order))
            for module in (own_theirs, to_source_theirs):
                module.reorder_incremental_state(theirs, torch.tensor(order))
    kept = torch.tensor([0, 2])
    own.reorder(state, torch.tensor([0, 1, 4, 5]))
    to_source.reorder(state, kept)
    x = torch.randn(1, 4, D)
    assert own(x, state=state).shape == to_source(x, source[:, kept], hide(mask[kept], x), state)[0].shape == x.shape


def restless():
    """A random model whose hypotheses end at different steps."""
    torch.manual_seed(2)
    return build(moe_freq=1).eval()


def searches(model, **options):
    theirs = SequenceGenerator([model], dictionary(), **{"beam_size": 4, "max_len_b": 12, **options})
    assert BeamSearchGenerator.covers(theirs)
    return BeamSearchGenerator(theirs), theirs


def sources(lengths=(6, 2, 5, 3)) -> dict:
    net_input = batch(tuple((length, 1) for length in lengths))["net_input"]
    languages = torch.arange(len(lengths)) % 2
    net_input |= {"source_language": languages, "target_language": 1 - languages}
    return {"id": torch.arange(len(lengths)), "net_input": net_input}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beam_size": 1},
        {"min_len": 5, "len_penalty": 0.3},
        {"max_len_a": 0.5, "max_len_b": 3, "unk_penalty": 2.0},
        {"normalize_scores": False, "temperature": 1.7},
    ],
)
@pytest.mark.parametrize("prefix", [None, [[7, 9], [8, 8], [7, 20], [30, 5]]])
def test_beam_search_finds_what_fairseq_finds(options, prefix):
    ours, theirs = searches(restless(), **options)
    prefix = None if prefix is None else torch.tensor(prefix)
    found = ours.generate([], sources(), prefix_tokens=prefix)
    expected = theirs.generate([], sources(), prefix_tokens=prefix)
    if not options and prefix is None:
        assert len({len(hypothesis["tokens"]) for sentence in expected for hypothesis in sentence}) > 1
    for mine, other in zip(found, expected, strict=True):
        assert [h["tokens"].tolist() for h in mine] == [h["tokens"].tolist() for h in other]
        for name in ("score", "positional_scores"):
            for a, b in zip(mine, other, strict=True):
                torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-4)
                assert a.keys() == b.keys()


def test_what_is_not_plain_beam_search_is_left_to_fairseq():
    model = restless()
    theirs = SequenceGenerator([model, copy.deepcopy(model)], dictionary(), beam_size=2)
    assert not BeamSearchGenerator.covers(theirs)
    ours, theirs = searches(model)
    ending = torch.tensor([[7, 2], [8, PAD], [7, 9], [9, 9]])
    found, expected = (g.generate([], sources(), prefix_tokens=ending) for g in (ours, theirs))
    assert [s[0]["tokens"].tolist() for s in found] == [s[0]["tokens"].tolist() for s in expected]
    assert ours.symbols_to_strip_from_output == theirs.symbols_to_strip_from_output


def test_the_first_step_and_finished_sentences_cost_nothing_more():
    """One row per sentence in the first step, and none for sentences that are done; languages follow."""
    model = restless()
    ours, _ = searches(model)
    found = ours.generate([], sources())
    with record_routing(model.decoder) as records:
        ours.generate([], sources())
    contexts = [record.context for layer, record in records if layer == records[0][0]]
    rows = [context.token_N.numel() for context in contexts]
    ends = [max(len(hypothesis["tokens"]) for hypothesis in sentence) for sentence in found]
    assert rows[0] == 4
    assert rows[1:] == [4 * sum(end > step for end in ends) for step in range(1, max(ends))]
    assert rows[-1] < rows[1]
    assert contexts[1].target_language_N.tolist() == [1] * 4 + [0] * 4 + [1] * 4 + [0] * 4


def test_the_encoder_routes_once_per_batch():
    model = restless()
    with record_routing(model.encoder) as records:
        searches(model)[0].generate([], sources())
    assert len(records) == len(model.encoder.layers)
