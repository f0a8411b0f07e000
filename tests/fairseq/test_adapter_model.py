"""Bottleneck adapters and hyper-adapters inside the real model, and checkpoints of other models in it."""

import argparse
import copy

import pytest
import torch
from fairseq.models.transformer import TransformerModel, base_architecture
from fairseq.sequence_generator import SequenceGenerator

from moe_nmt.errors import UserError
from moe_nmt.fairseq_plugin.criterion import MoELabelSmoothedCrossEntropyCriterion
from moe_nmt.fairseq_plugin.generator import BeamSearchGenerator
from moe_nmt.fairseq_plugin.model import TransformerMoEModel, build_transformer_moe
from tests.fairseq.test_model import PAD, Task, batch, config, dictionary

LANGUAGES, DIRECTIONS = ["a", "b", "c"], ["a-b", "b-a"]
BOTTLENECK, HYPER = "bottleneck(dim=4)", "hyper(dim=4, hidden=6, dropout=0.0)"
KINDS = [
    BOTTLENECK,
    "bottleneck(dim=4, by=source)",
    "bottleneck(dim=4, by=target)",
    "bottleneck(dim=4, by=pair)",
    "bottleneck(dim=4, by=family, families=[[a, c]])",
    "bottleneck(dim=4, languages=[b])",
    HYPER,
    "hyper(dim=4, hidden=6, dropout=0.0, encoder_inputs=[source, layer], decoder_inputs=[target, layer])",
]
every_kind = pytest.mark.parametrize("spec", KINDS)
both = pytest.mark.parametrize("spec", [BOTTLENECK, HYPER])


def build(spec="", drawn=True, languages=LANGUAGES, std=0.3, **options):
    """The same base for every spec; adapters with all their parameters drawn, unless they are to be as at the start."""
    torch.manual_seed(0)
    words = dictionary()
    options = config(adapters=spec, **{"moe_freq": 2, **options})
    model = build_transformer_moe(options, words, words, languages=languages, directions=DIRECTIONS)
    if spec and drawn:
        for parameter in model.adapters.parameters():
            torch.nn.init.normal_(parameter, std=std)
    return model


def sample_of(source=(0, 1, 2, 0, 2), target=(1, 0, 1, 1, 0)):
    lengths = ((5, 4), (3, 6), (4, 1), (2, 3), (5, 5))
    sample = batch(lengths)
    sample["net_input"] |= {"source_language": torch.tensor(source), "target_language": torch.tensor(target)}
    return sample


def only(sample, rows):
    """These sentences of a batch, as a batch."""
    target = sample["target"][rows]
    return {
        "id": sample["id"][rows],
        "nsentences": len(rows),
        "ntokens": int(target.ne(PAD).sum()),
        "target": target,
        "net_input": {name: value[rows] for name, value in sample["net_input"].items()},
    }


class ThreeLanguages(Task):
    lang_pairs = ("a-b", "b-a", "c-b", "c-a")

    @staticmethod
    def direction_index():
        return torch.tensor([[-1, 0, -1], [1, -1, -1], [3, 2, -1]])


def loss_and_gradients(model, sample):
    model.zero_grad()
    loss, _, _ = MoELabelSmoothedCrossEntropyCriterion(ThreeLanguages(), False, 0.1, moe_losses="")(model, sample)
    loss.backward()
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    return loss.detach(), gradients


def logits(model, sample):
    return model(**sample["net_input"])[0]


@every_kind
@pytest.mark.parametrize("moe_freq", [0, 2])
def test_at_the_start_the_model_is_its_base(spec, moe_freq):
    base, adapted = build(moe_freq=moe_freq).eval(), build(spec, drawn=False, moe_freq=moe_freq).eval()
    assert torch.equal(logits(adapted, sample_of()), logits(base, sample_of()))
    assert not torch.equal(logits(build(spec, moe_freq=moe_freq).eval(), sample_of()), logits(base, sample_of()))


@every_kind
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("moe_freq", [0, 2])
def test_a_mixed_batch_gives_the_losses_and_gradients_of_its_directions(spec, training, moe_freq):
    model, sample = build(spec, moe_freq=moe_freq).train(training), sample_of()
    mixed, gradients = loss_and_gradients(model, sample)
    parts = [loss_and_gradients(model, only(sample, rows)) for rows in ([0, 3], [1], [2], [4])]
    torch.testing.assert_close(sum(loss for loss, _ in parts), mixed, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        expected = sum(single[name] for _, single in parts)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4, msg=name)
    with torch.no_grad():
        whole = logits(model, sample)
        for rows in ([0, 3], [1], [2], [4]):
            torch.testing.assert_close(logits(model, only(sample, rows)), whole[rows], rtol=1e-4, atol=1e-4)


@both
@pytest.mark.parametrize("normalize_before", [True, False])
def test_an_adapter_comes_after_every_layer(spec, normalize_before):
    """The same as a base whose every layer's output is changed by hand, one sentence at a time."""
    norm = {f"{side}_normalize_before": normalize_before for side in ("encoder", "decoder")}
    base, adapted, sample = build(**norm).eval(), build(spec, **norm).eval(), sample_of()
    pairs = [sample["net_input"][f"{side}_language"] for side in ("source", "target")]
    for side in ("encoder", "decoder"):
        for number, layer in enumerate(getattr(base, side).layers):

            def change(module, inputs, output, side=side, number=number):
                x, *rest = output if isinstance(output, tuple) else (output,)
                rows = [
                    adapted.adapters.open(side, *(p[[row]] for p in pairs))[number].on_output(x[:, [row]])
                    for row in range(x.shape[1])
                ]
                return (torch.cat(rows, 1), *rest) if rest else torch.cat(rows, 1)

            layer.register_forward_hook(change)
    torch.testing.assert_close(logits(adapted, sample), logits(base, sample), rtol=1e-4, atol=1e-4)


@every_kind
def test_parameters_of_adapters_are_apart_and_the_base_keeps_its_names(spec):
    base, adapted = build(), build(spec)
    names = {name for name, _ in adapted.named_parameters()}
    assert {name for name in names if not name.startswith("adapters.")} == {n for n, _ in base.named_parameters()}
    assert {n for n in adapted.state_dict() if not n.startswith("adapters.")} == base.state_dict().keys()
    assert sum(p.numel() for p in adapted.adapters.parameters()) == sum(
        p.numel() for n, p in adapted.named_parameters() if n.startswith("adapters.")
    )


@every_kind
def test_decoding_step_by_step_equals_the_full_forward_pass(spec):
    model = build(spec, moe_freq=1).eval()
    inputs = batch(((5, 6), (3, 6), (4, 6)))["net_input"]
    languages = {"source_language": torch.tensor([0, 1, 2]), "target_language": torch.tensor([1, 0, 1])}
    with torch.no_grad():
        encoder_out = model.encoder(inputs["src_tokens"], **languages)
        full, _ = model.decoder(inputs["prev_output_tokens"], encoder_out)
        state: dict = {}
        for length in range(1, 7):
            step, _ = model.decoder(inputs["prev_output_tokens"][:, :length], encoder_out, incremental_state=state)
            torch.testing.assert_close(step[:, -1], full[:, length - 1], rtol=1e-4, atol=1e-5)


@every_kind
@pytest.mark.parametrize("beam", [1, 4])
def test_beam_search_finds_what_fairseq_finds_and_what_it_finds_alone(spec, beam):
    """fairseq repeats a sentence for each hypothesis; ours has several hypotheses per sentence and drops what is done.

    The end of sentence is made likely, so that hypotheses end at different steps.
    """
    model, sample = build(spec, moe_freq=1).eval(), sample_of()
    del sample["net_input"]["prev_output_tokens"]
    with torch.no_grad():
        model.decoder.embedding.embed_tokens.weight[dictionary().eos()] *= 3
    theirs = SequenceGenerator([model], dictionary(), beam_size=beam, max_len_b=12)
    ours = BeamSearchGenerator(theirs)
    expected, found = theirs.generate([], sample), ours.generate([], sample)
    lengths = set()

    def at(row):
        return {name: value[[row]] for name, value in sample["net_input"].items()}

    for row, (mine, other) in enumerate(zip(found, expected, strict=True)):
        (alone,) = ours.generate([], {"id": sample["id"][[row]], "net_input": at(row)})
        for hypothesis, fairseqs, lonely in zip(mine, other, alone, strict=True):
            lengths.add(len(hypothesis["tokens"]))
            assert hypothesis["tokens"].tolist() == fairseqs["tokens"].tolist() == lonely["tokens"].tolist()
            torch.testing.assert_close(
                hypothesis["positional_scores"], fairseqs["positional_scores"], rtol=1e-4, atol=1e-4
            )
    assert beam == 1 or len(lengths) > 1


@every_kind
def test_activation_checkpointing_gives_the_same_gradients(spec):
    plain = build(spec.replace("dropout=0.0", "dropout=0.2"), dropout=0.1)
    recomputing = copy.deepcopy(plain)
    recomputing.encoder.checkpoint_activations = recomputing.decoder.checkpoint_activations = True
    results = []
    for model in (plain, recomputing):
        torch.manual_seed(1)
        results.append(loss_and_gradients(model, sample_of())[1])
    assert all(results[0][name].any() for name in results[0] if name.startswith("adapters."))
    for name in results[0]:
        assert torch.equal(results[0][name], results[1][name]), name


@both
@pytest.mark.parametrize("mode", ["bfloat16", "autocast"])
def test_lower_precision(spec, mode):
    model = build(spec, moe_freq=0)
    expected, _ = loss_and_gradients(model, sample_of())
    if mode == "bfloat16":
        loss, gradients = loss_and_gradients(model.bfloat16(), sample_of())
    else:
        with torch.autocast("cpu", torch.bfloat16):
            loss, gradients = loss_and_gradients(model, sample_of())
    torch.testing.assert_close(loss.float(), expected, rtol=0.03, atol=0.0)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert all(gradients[name].any() for name in gradients if name.startswith("adapters."))


@both
def test_a_copy_of_the_model_uses_adapters_of_its_own(spec):
    model, sample = build(spec).eval(), sample_of()
    with torch.no_grad():
        before = logits(model, sample)
        copied = copy.deepcopy(model)
        for parameter in copied.adapters.parameters():
            parameter.mul_(2)
        copied.eval()
        assert not torch.equal(logits(copied, sample), before)
        assert torch.equal(logits(model, sample), before)
    assert copied.encoder.adapters is copied.decoder.adapters is copied.adapters is not model.adapters


@both
def test_after_an_update_evaluation_uses_the_new_parameters(spec):
    model, sample = build(spec).eval(), sample_of()
    with torch.no_grad():
        before = logits(model, sample)
    loss_and_gradients(model.train(), sample)
    torch.optim.SGD(model.adapters.parameters(), lr=0.1).step()
    model.eval()
    with torch.no_grad():
        after = logits(model, sample)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, logits(model, sample), rtol=1e-4, atol=1e-4)


WIDTHS = {"share_all_embeddings": False, "decoder_embed_dim": 24}


def test_encoder_and_decoder_may_differ_in_width():
    model = build(BOTTLENECK, **WIDTHS)
    widths = {p.shape[1] for n, p in model.adapters.named_parameters() if n.endswith("up_bias_GD")}
    assert widths == {16, 24}
    _, gradients = loss_and_gradients(model, sample_of())
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    with pytest.raises(UserError, match="must be of one width"):
        build(HYPER, **WIDTHS)


@both
@pytest.mark.parametrize("unknown", ["source_language", "target_language"])
def test_a_batch_that_does_not_say_its_languages_is_refused(spec, unknown):
    sample = sample_of()
    sample["net_input"][unknown] = None
    with pytest.raises(UserError, match="the batch does not say its languages; use the task multilingual_transl"):
        logits(build(spec), sample)
    assert logits(build(), sample).isfinite().all()


@both
def test_adapters_without_languages_are_refused(spec):
    with pytest.raises(UserError, match="the model knows no languages"):
        build(spec, languages=())


class Task3:
    source_dictionary = target_dictionary = dictionary()
    langs, lang_pairs = LANGUAGES, DIRECTIONS


@pytest.mark.parametrize("spec", [BOTTLENECK, "bottleneck(dim=4, by=pair)", HYPER])
def test_the_completed_spec_goes_into_the_arguments_and_makes_the_same_model(spec):
    args = argparse.Namespace(**vars(config(adapters=spec)))
    model = TransformerMoEModel.build_model(args, Task3)
    assert args.adapters.startswith(spec.rstrip(")")) and "languages=['a', 'b', 'c']" in args.adapters
    assert ("directions=['a-b', 'b-a']" in args.adapters) == ("pair" in spec)
    more = type("More", (Task3,), {"langs": ["z", "a", "b", "c"], "lang_pairs": ["z-a"]})
    again = TransformerMoEModel.build_model(copy.copy(args), more)
    torch.nn.init.normal_(model.adapters.get_parameter(next(n for n, _ in model.adapters.named_parameters())))
    again.load_state_dict(model.state_dict())
    shifted = sample_of((1, 2, 3, 1, 3), (2, 1, 2, 2, 1))
    assert torch.equal(logits(again.eval(), shifted), logits(model.eval(), sample_of()))


@both
def test_a_base_without_adapters_leaves_them_as_they_were_drawn(spec, caplog):
    base, model = build(dropout=0.1), build(spec)
    torch.manual_seed(9)
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    before = {name: value.clone() for name, value in model.adapters.state_dict().items()}
    state = base.state_dict()
    with caplog.at_level("INFO"):
        model.load_state_dict(state)
    assert "the checkpoint has no adapters" in caplog.text
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name[9:]] if name.startswith("adapters.") else base.state_dict()[name]), name


@pytest.mark.parametrize(
    ("spec", "other"),
    [
        ("", BOTTLENECK),
        (BOTTLENECK, "bottleneck(dim=5)"),
        (BOTTLENECK, "bottleneck(dim=4, languages=[a])"),
        (BOTTLENECK, HYPER),
        (HYPER, "hyper(dim=4, hidden=7)"),
    ],
)
def test_a_state_of_other_adapters_is_refused(spec, other):
    with pytest.raises(UserError, match="the checkpoint has other adapters than the model"):
        build(spec).load_state_dict(build(other).state_dict())


@both
def test_a_state_of_these_adapters_is_loaded(spec):
    one, other = build(spec).eval(), build(spec, drawn=False).eval()
    with torch.no_grad():
        before = logits(other, sample_of())
        other.load_state_dict(one.state_dict())
        assert torch.equal(logits(other, sample_of()), logits(one, sample_of()))
    assert not torch.equal(logits(one, sample_of()), before)


def fairseqs(**options):
    """fairseq's own Transformer, of the size of ours."""
    sizes = {name: value for name, value in vars(config()).items() if "moe" not in name and name != "adapters"}
    args = argparse.Namespace(**{**sizes, "max_source_positions": 64, "max_target_positions": 64, **options})
    base_architecture(args)
    task = argparse.Namespace(source_dictionary=dictionary(), target_dictionary=dictionary())
    return TransformerModel.build_model(args, task)


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("spec", ["", BOTTLENECK])
@pytest.mark.parametrize("normalize_before", [True, False])
@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize(
    "embeddings",
    [
        {},
        {"share_all_embeddings": False},
        {"share_all_embeddings": False, "share_decoder_input_output_embed": False, "layernorm_embedding": True},
    ],
    ids=["shared", "two", "three, normalized"],
)
def test_a_transformer_of_fairseq_is_loaded_and_gives_the_same_logits(spec, normalize_before, learned, embeddings):
    options = {
        name: value
        for side in ("encoder", "decoder")
        for name, value in ((f"{side}_normalize_before", normalize_before), (f"{side}_learned_pos", learned))
    } | embeddings
    torch.manual_seed(4)
    theirs = fairseqs(**options).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    words = dictionary()
    model = build_transformer_moe(
        config(moe_freq=0, adapters=spec, **options), words, words, 64, 64, languages=LANGUAGES, directions=DIRECTIONS
    ).eval()
    model.load_state_dict(theirs.state_dict())
    inputs = sample_of()["net_input"]
    expected, _ = theirs(inputs["src_tokens"], inputs["src_lengths"], inputs["prev_output_tokens"])
    real = sample_of()["target"].ne(PAD)
    torch.testing.assert_close(model(**inputs)[0][real], expected[real], rtol=1e-4, atol=1e-4)
