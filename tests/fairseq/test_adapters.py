"""Adapters and freezing through fairseq's real commands."""

import re

import pytest
import torch

from tests.fairseq.conftest import ROOT, must_run, run
from tests.fairseq.test_bad_input import refuse
from tests.fairseq.test_commands import translations
from tests.fairseq.test_resume import assert_equal, final_state, train_until

GREEK = "eng-ell,ell-eng"
FROZEN = ("--freezing", "train_only(parts=[adapters])")
KINDS = {
    "bottleneck": "bottleneck(dim=8,languages=[ell])",
    "pair": "bottleneck(dim=8,by=pair,languages=[ell])",
    "hyper": "hyper(dim=8,hidden=4,languages=[ell])",
    "mov": "mov(count=2,languages=[ell])",
    "molora": "molora(count=2,rank=2,languages=[ell])",
}


def adapt_command(corpus, base, save_dir, updates, *flags):
    flags = ("--finetune-from-model", str(base), "--no-epoch-checkpoints", "--disable-validation", *flags)
    return corpus.train_command(save_dir, updates, *flags)


def adapt(corpus, base, save_dir, *flags, updates=30):
    """Train on the Greek directions from a base model; returns the checkpoint."""
    must_run(adapt_command(corpus, base, save_dir, updates, "--lang-pairs", GREEK, *flags))
    return save_dir / "checkpoint_last.pt"


def generate(corpus, checkpoint, pair):
    return translations(must_run(corpus.generate_command(checkpoint, pair)).stdout)


@pytest.fixture(scope="module")
def of_base(corpus, trained):
    """The base model's translations by direction."""
    return {pair: generate(corpus, trained, pair) for pair in ("eng-deu", "eng-ell")}


def trained_names(state):
    return {name for name in state["model"] if name.startswith("adapters.")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_base_stays_bit_identical_and_only_adapters_have_optimizer_state(
    corpus, trained, of_base, tmp_path, kind
):
    adapted = adapt(corpus, trained, tmp_path, "--adapters", KINDS[kind], *FROZEN)
    before, after = torch.load(trained)["model"], torch.load(adapted)
    assert trained_names(after) and after["model"].keys() - trained_names(after) == before.keys()
    for name, value in before.items():
        assert torch.equal(after["model"][name], value), name
    moments = after["last_optimizer_state"]["state"]
    assert len(moments) == len(trained_names(after))
    trained_numbers = sum(after["model"][name].numel() for name in trained_names(after))
    assert sum(state["exp_avg"].numel() for state in moments.values()) == trained_numbers
    assert any(state["exp_avg"].any() for state in moments.values())
    assert generate(corpus, adapted, "eng-deu") == of_base["eng-deu"]
    assert generate(corpus, adapted, "eng-ell") != of_base["eng-ell"]


def test_frozen_parameters_stay_bit_identical_under_weight_decay(corpus, trained, tmp_path):
    flags = ("--freezing", "ft_enc_attn", "--optimizer", "moe_adam", "--weight-decay", "0.1")
    adapted = torch.load(adapt(corpus, trained, tmp_path, *flags))["model"]
    changed = {name for name, value in torch.load(trained)["model"].items() if not torch.equal(adapted[name], value)}
    pattern = r"decoder\.layers\.\d\.(encoder_attn\.|\w+_layer_norm\.)|decoder\.layer_norm\."
    assert changed == {name for name in adapted if re.match(pattern, name)}


def test_interactive_and_translate_agree_with_generate(corpus, trained, tmp_path):
    adapted = adapt(corpus, trained, tmp_path / "save", "--adapters", KINDS["hyper"], *FROZEN)
    command = corpus.generate_command(adapted, "eng-ell")
    generated = must_run(command).stdout
    number, source = re.search(r"^S-(\d+)\t__eng__ (.*)$", generated, flags=re.M).groups()
    interactive = ["fairseq-interactive", *(c for c in command[1:] if c not in ("--gen-subset", "test"))]
    place = interactive.index("--remove-bpe")
    model = corpus.folder / "subwords/spm.model"
    interactive[place : place + 2] = ["--bpe", "sentencepiece", "--sentencepiece-model", model]
    assert translations(must_run(interactive, input=source + "\n").stdout)[0] == translations(generated)[int(number)]
    search = ("--beam", "4", "--max-len-a", "0", "--max-len-b", "40", "--directions", "eng-ell,eng-deu")
    must_run(["moe-nmt", "translate", adapted, corpus.data, "--output", tmp_path / "out", *search], cwd=ROOT)
    ours = (tmp_path / "out/eng-ell.hyp").read_text(encoding="utf-8").splitlines()
    assert dict(enumerate(ours)) == translations(generated)


def test_the_checkpoint_names_the_languages_of_its_adapters(corpus, trained, tmp_path):
    """So that it does not depend on their numbers."""
    adapted = torch.load(adapt(corpus, trained, tmp_path, "--adapters", "bottleneck(dim=8)", *FROZEN))
    assert adapted["cfg"]["model"].adapters == "bottleneck(dim=8, languages=['eng', 'deu', 'fra', 'ell'])"


def test_training_with_hyper_adapters_that_was_killed_ends_as_if_nothing_had_happened(corpus, trained, tmp_path):
    flags = ("--adapters", "hyper(dim=8,hidden=4)", *FROZEN, "--save-interval-updates", "10")
    killed = adapt_command(corpus, trained, tmp_path / "killed", 45, *flags)
    train_until(killed, 25)
    assert "@ 20 updates" in must_run(killed).stdout
    must_run(adapt_command(corpus, trained, tmp_path / "unbroken", 45, *flags))
    assert_equal(final_state(tmp_path / "killed"), final_state(tmp_path / "unbroken"))


def test_batches_without_an_adapted_sentence_train_nothing_and_fail_nowhere(corpus, trained, tmp_path):
    flags = ("--adapters", KINDS["bottleneck"], *FROZEN, "--batch-size", "1")
    must_run(adapt_command(corpus, trained, tmp_path, 30, *flags))


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("--bf16", torch.bfloat16), ("--fp16", torch.float16), ("--memory-efficient-bf16", torch.bfloat16)],
)
def test_half_precision_with_recomputation(corpus, trained, tmp_path, precision, dtype):
    """fairseq then saves what is left of the base in half precision, as float32."""
    flags = ("--adapters", KINDS["hyper"], *FROZEN, precision, "--checkpoint-activations")
    adapted = torch.load(adapt(corpus, trained, tmp_path, *flags, updates=10))["model"]
    for name, value in torch.load(trained)["model"].items():
        assert torch.equal(adapted[name], value.to(dtype).to(adapted[name].dtype)), name
    assert any(adapted[name].any() for name in adapted if ".heads.up." in name)


def test_all_is_trained_together_from_the_beginning(corpus, tmp_path):
    flags = ("--arch", "transformer_adapter_tiny", "--adapters", "hyper(dim=8,hidden=16,init=hyper)")
    done = must_run(corpus.train_command(tmp_path, 60, *flags, "--no-epoch-checkpoints", "--log-interval", "20"))
    losses = [float(loss) for loss in re.findall(r"train_inner.* nll_loss=([\d.]+)", done.stdout)]
    assert losses[-1] < losses[0] - 1


def test_a_transformer_of_fairseq_itself_is_a_base(corpus, tmp_path):
    """`transformer_adapter` takes the parameters of `--arch transformer`, under the names they have here."""
    sizes = ("--encoder-layers", "2", "--decoder-layers", "2", "--encoder-attention-heads", "4")
    sizes += ("--decoder-attention-heads", "4", "--encoder-normalize-before", "--decoder-normalize-before")
    theirs = ("--task", "translation_multi_simple_epoch", "--criterion", "label_smoothed_cross_entropy")
    model = ("--arch", "transformer", "--share-all-embeddings", *sizes, "--no-epoch-checkpoints")
    must_run(corpus.train_command(tmp_path / "base", 300, *theirs, *model, "--disable-validation"))
    base = tmp_path / "base/checkpoint_last.pt"
    ours = ("--arch", "transformer_adapter_tiny", "--adapters", KINDS["bottleneck"], *FROZEN)
    adapted = adapt(corpus, base, tmp_path / "adapted", *ours)
    before, after = torch.load(base)["model"], torch.load(adapted)["model"]
    assert torch.equal(after["encoder.layers.0.feed_forward.fc1.weight"], before["encoder.layers.0.fc1.weight"])
    command = corpus.generate_command(base, "eng-deu", *theirs[:2])
    expected = translations(must_run(command).stdout)
    assert any(expected.values()) and generate(corpus, adapted, "eng-deu").items() >= expected.items()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--adapters", "bottleneck(dim=8,languages=[elll])"), ("elll", "ell")),
        (("--adapters", "botleneck(dim=8)"), ("botleneck", "bottleneck")),
        (("--adapters", "bottleneck"), ("dim", "bottleneck(dim=…")),
        (("--adapters", "hyper(dim=8,hidden=0)"), ("hidden", "at least 1")),
        (FROZEN, ("adapters", "the model has no adapters")),
        (("--freezing", "train_only(parts=[adaptors])"), ("adaptors", "adapters")),
        (("--freezing", "ft_encoder_attn"), ("ft_encoder_attn", "ft_enc_attn")),
        (("--freezing", "freeze(parts=[encoder,decoder,embeddings])"), ("nothing is left to train",)),
        (("--arch", "transformer"), ("--arch transformer", "transformer_adapter")),
        (("--encoder-layers", "3"), ("does not fit the model", "encoder.layers.2")),
        (("--finetune-from-model", "nowhere.pt"), ("nowhere.pt", "does not exist")),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(corpus, trained, tmp_path, flags, words):
    refuse(run(adapt_command(corpus, trained, tmp_path, 2, *flags)), *words)


def test_other_adapters_than_the_checkpoint_has_are_refused(corpus, trained, tmp_path):
    adapt(corpus, trained, tmp_path, "--adapters", "bottleneck(dim=8)", *FROZEN, updates=2)
    other = ("--lang-pairs", GREEK, "--adapters", "bottleneck(dim=4)", *FROZEN)
    refuse(run(adapt_command(corpus, trained, tmp_path, 4, *other)), "other adapters", "checkpoint_last.pt")


def test_the_optimizer_state_of_other_parameters_is_refused_unless_it_is_reset(corpus, trained, tmp_path):
    flags = ("--restore-file", str(trained), "--adapters", "bottleneck(dim=8)", *FROZEN, "--disable-validation")
    refuse(run(corpus.train_command(tmp_path, 700, *flags)), "optimizer state", "--finetune-from-model")
    reset = (f"--reset-{what}" for what in ("optimizer", "lr-scheduler", "dataloader", "meters"))
    must_run(corpus.train_command(tmp_path, 4, *flags, *reset))
    adapted = torch.load(tmp_path / "checkpoint_last.pt")["model"]
    assert all(torch.equal(adapted[name], value) for name, value in torch.load(trained)["model"].items())
