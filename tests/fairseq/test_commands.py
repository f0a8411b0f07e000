"""The plugin through fairseq's real commands."""

import re

import pytest
import torch

from moe_nmt.fairseq_plugin import compat
from tests.fairseq.conftest import ROOT, must_run


def translations(output: str) -> dict[int, str]:
    """Detokenised translations of `fairseq-generate`, by sentence number."""
    return {int(n): text for n, text in re.findall(r"^D-(\d+)\t\S+\t(.*)$", output, flags=re.M)}


def test_translations_do_not_depend_on_the_batch_size(corpus, trained):
    outputs = [
        translations(must_run(corpus.generate_command(trained, "eng-deu", "--batch-size", size)).stdout)
        for size in ("1", "7", "64")
    ]
    assert len(outputs[0]) == 20
    assert outputs[0] == outputs[1] == outputs[2]


def test_generation_at_both_ends_of_a_direction_uses_its_language(corpus, trained):
    into_greek = translations(must_run(corpus.generate_command(trained, "eng-ell")).stdout)
    into_german = translations(must_run(corpus.generate_command(trained, "eng-deu")).stdout)
    assert re.search("[α-ω]", " ".join(into_greek.values()))
    assert not re.search("[α-ω]", " ".join(into_german.values()))
    assert "__deu__" not in " ".join(into_german.values())


def test_interactive_translates_a_raw_line_like_generate(corpus, trained):
    generated = must_run(corpus.generate_command(trained, "eng-deu")).stdout
    number, source = re.search(r"^S-(\d+)\t__eng__ (.*)$", generated, flags=re.M).groups()
    command = corpus.generate_command(trained, "eng-deu")
    command = ["fairseq-interactive", *(c for c in command[1:] if c not in ("--gen-subset", "test"))]
    place = command.index("--remove-bpe")
    command[place : place + 2] = [
        "--bpe",
        "sentencepiece",
        "--sentencepiece-model",
        corpus.folder / "subwords/spm.model",
    ]
    answer = must_run(command, input=source + "\n").stdout
    assert translations(answer)[0] == translations(generated)[int(number)]


@pytest.mark.parametrize("command", [("fairseq-preprocess", "--user-dir", ROOT / "moe_nmt"), ("moe-nmt", "preprocess")])
def test_preprocess_writes_what_the_data_step_writes(corpus, tmp_path, command):
    prefixes = [f"--{split}pref={corpus.folder}/encoded/{split}.eng-ell" for split in ("train", "valid", "test")]
    dictionary = corpus.folder / "subwords/dict.txt"
    flags = ["--source-lang", "eng", "--target-lang", "ell", "--srcdict", dictionary, "--joined-dictionary"]
    must_run([*command, *flags, *prefixes, "--destdir", tmp_path])
    for path in tmp_path.glob("*.eng-ell.*"):
        assert path.read_bytes() == (corpus.data / path.name).read_bytes()


def test_validate_reports_every_direction(corpus, trained):
    flags = ["--path", trained, "--valid-subset", "test", "--max-tokens", "500"]
    log = must_run(["fairseq-validate", corpus.data, *corpus.task_flags, *flags]).stdout
    for pair in corpus.pairs:
        assert f"nll_loss_{pair} " in log
    assert "moe_entropy" in log


def test_the_moe_nmt_command_is_the_same_with_the_user_dir_set(corpus, trained):
    plain = must_run(corpus.generate_command(trained, "eng-deu")).stdout
    command = corpus.generate_command(trained, "eng-deu")
    user_dir = command.index("--user-dir")
    ours = must_run(["moe-nmt", "generate", *command[1:user_dir], *command[user_dir + 2 :]]).stdout
    assert translations(ours) == translations(plain)


@pytest.mark.parametrize("precision", ["--fp16", "--bf16", "--memory-efficient-bf16"])
def test_half_precision_trains_and_resumes(corpus, tmp_path, precision):
    flags = (precision, "--disable-validation", "--fp16-init-scale", "4", "--moe-router", "top_k(k=1)")
    must_run(corpus.train_command(tmp_path, 4, *flags))
    log = must_run(corpus.train_command(tmp_path, 6, *flags)).stdout
    assert "@ 4 updates" in log and "num_updates: 6" in log
    state = torch.load(tmp_path / "checkpoint_last.pt")
    assert all(value.isfinite().all() for value in state["model"].values())


def test_tensorboard_and_per_layer_figures(corpus, tmp_path):
    flags = ("--tensorboard-logdir", str(tmp_path / "tb"), "--moe-log-per-layer", "--validate-interval-updates", "2")
    log = must_run(corpus.train_command(tmp_path, 4, *flags)).stdout
    assert "moe_entropy_encoder.layers.1.feed_forward.moe" in log
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tb/valid"))
    events.Reload()
    assert {"nll_loss_eng-ell", "ppl_ell-eng", "moe_overflow"} <= set(events.Tags()["scalars"])


def test_capacity_and_every_kind_of_part_train_together(corpus, tmp_path):
    flags = {
        "--moe-router": "top_k(k=2, capacity_factor=0.5, second_expert=random, jitter=0.01)",
        "--moe-experts": "ffn(count=6, inner_dim=32)",
        "--moe-regularizers": "[eom(p=linear(start=0.0, end=0.2, steps=4)), fom(p=0.1)]",
        "--moe-branch": "residual",
        "--moe-losses": "[load_balancing(weight=linear(start=0.0, end=0.01, steps=4)), z_loss(weight=0.001)]",
        "--moe-freq": "1",
        "--decoder-moe-freq": "2",
    }
    flat = [word for flag in flags.items() for word in flag]
    log = must_run(corpus.train_command(tmp_path, 6, "--disable-validation", "--checkpoint-activations", *flat)).stdout
    overflow = re.findall(r"moe_overflow[= ]([\d.]+)", log)
    assert overflow and all(0.1 < float(value) < 0.9 for value in overflow)
    assert "moe_z_loss_loss" in log
    must_run(corpus.generate_command(tmp_path / "checkpoint_last.pt", "eng-deu", "--max-len-b", "5"))


def test_the_model_and_criterion_serve_the_plain_translation_task(corpus, tmp_path):
    must_run(
        [
            *("fairseq-train", corpus.data, "--user-dir", ROOT / "moe_nmt", "--cpu", "--task", "translation"),
            *("-s", "eng", "-t", "deu", "--arch", "transformer_moe_tiny", "--criterion"),
            *("moe_label_smoothed_cross_entropy", "--optimizer", "adam", "--lr", "0.001", "--max-update", "2"),
            *("--max-tokens", "500", "--num-workers", "0", "--save-dir", tmp_path),
        ]
    )


def test_compat_names_only_harmless_globals():
    compat.allow_checkpoint_globals()
    names = [getattr(g, "__name__", str(g)) for g in torch.serialization.get_safe_globals()]
    assert "Namespace" in names
    assert not {"eval", "exec", "system", "getattr", "__import__"} & set(names)
