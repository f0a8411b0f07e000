"""The cures for over-fitting together: with one another, with recomputation and half precision, and switched off."""

import itertools
import sys
from pathlib import Path

import pytest
import torch

from tests.fairseq.conftest import ROOT, must_run
from tests.fairseq.test_model import batch, build, criterion, gradients
from tests.fairseq.test_resume import assert_equal, final_state

CURES = {
    "dropout": {"dropout": 0.3, "moe_expert_dropout": 0.1, "moe_expert_activation_dropout": 0.4},
    "eom": {"moe_regularizers": "eom(p=0.3)"},
    "fom": {"moe_regularizers": "fom(p=linear(start=0.1, end=0.3, steps=10))"},
    "gate_drop": {"moe_regularizers": "gating_dropout(p=0.5, mode=gate, local_groups=2)"},
    "gate_expert_drop": {"moe_regularizers": "gating_dropout(p=0.5)"},
    "moec": {"moe_regularizers": "cluster_dropout(clusters=2)", "losses": "cluster_variance(clusters=2, weight=0.1)"},
    "cmr": {"moe_branch": "conditional(gate_dropout=0.3)", "losses": "gate_budget(weight=0.1)"},
}
LISTS = ("moe_regularizers", "losses")


def together(*names: str) -> tuple[dict, str]:
    """The options of the model, and the losses, that several cures make together."""
    options = {key: value for name in names for key, value in CURES[name].items() if key not in LISTS}
    lists = {key: [CURES[name][key] for name in names if key in CURES[name]] for key in LISTS}
    losses = ["load_balancing(weight=0.01)", *lists["losses"]]
    return options | {"moe_regularizers": f"[{', '.join(lists['moe_regularizers'])}]"}, f"[{', '.join(losses)}]"


def at_step(model, step: int):
    model.set_num_updates(step)
    torch.manual_seed(step)
    return model


def build_with(*names: str, **options):
    torch.manual_seed(0)
    chosen, losses = together(*names)
    return build(moe_freq=1, **chosen, **options), losses


@pytest.mark.parametrize("names", itertools.combinations(CURES, 2), ids="+".join)
def test_any_two_train_under_recomputation_with_the_same_gradients(names):
    kept, losses = build_with(*names)
    recomputed, _ = build_with(*names, checkpoint_activations=True)
    for step in range(3):
        expected, log = gradients(at_step(kept, step), batch(), losses)
        found, _ = gradients(at_step(recomputed, step), batch(), losses)
        assert log["loss"].isfinite()
        for name, gradient in expected.items():
            assert gradient.isfinite().all() and torch.equal(gradient, found[name]), name


@pytest.mark.parametrize("names", itertools.combinations(CURES, 2), ids="+".join)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_any_two_train_in_half_precision_and_evaluate_alike(names, dtype):
    model, losses = build_with(*names)
    at_step(model.to(dtype), 5)
    loss, size, _ = criterion(losses)(model, batch())
    (loss / size).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    evaluated = [criterion(losses)(model.eval(), batch())[0] for _ in range(2)]
    assert torch.equal(*evaluated) and evaluated[0].isfinite()


def test_without_a_cure_none_of_their_code_runs():
    model, called = build(moe_freq=1), set()
    sample, plain = batch(), criterion("[load_balancing(weight=0.01)]")
    sys.setprofile(lambda frame, event, _: called.add(frame.f_code.co_filename) if event == "call" else None)
    try:
        loss, size, _ = plain(at_step(model, 1), sample)
        (loss / size).backward()
    finally:
        sys.setprofile(None)
    ours = {"/".join(Path(name).parts[-2:]) for name in called if "moe_nmt" in Path(name).parts}
    assert "moe/layer.py" in ours and "losses/load_balancing.py" in ours
    cures = ("regularizers/", "branches/", "losses/gate_budget", "losses/cluster_variance", "training/curriculum")
    assert {name for name in ours if name.startswith(cures)} == set()


def test_at_rate_zero_training_is_bit_identical(corpus, tmp_path):
    flags = ("--disable-validation", "--checkpoint-activations", "--dropout", "0.1")
    zero = "[eom(p=0.0), fom(p=0.0), gating_dropout(p=0.0), cluster_dropout(clusters=2, p=0.0)]"
    losses = "[load_balancing(weight=0.01), cluster_variance(clusters=2, weight=0.0)]"
    must_run(corpus.train_command(tmp_path / "plain", 20, *flags))
    off = ("--moe-regularizers", zero, "--moe-losses", losses, "--moe-expert-dropout", "0.1")
    must_run(corpus.train_command(tmp_path / "off", 20, *flags, *off))
    (plain, plain_adam), (off, off_adam) = (final_state(tmp_path / name) for name in ("plain", "off"))
    assert_equal({name: value for name, value in off.items() if "regularizers" not in name}, plain)
    assert_equal(off_adam, plain_adam)


@pytest.mark.parametrize("precision", [("--bf16", "--checkpoint-activations"), ("--fp16", "--fp16-init-scale", "4")])
def test_all_of_them_train_and_translate_together_in_half_precision(corpus, tmp_path, precision):
    options, losses = together(*CURES)
    starts = "".join(f"{pair}\t{3 * (number % 2)}\n" for number, pair in enumerate(corpus.pairs))
    (tmp_path / "curriculum.tsv").write_text(f"direction\tstart\n{starts}")
    flags = [*precision, "--disable-validation", "--moe-losses", losses]
    flags += ["--curriculum-phases", tmp_path / "curriculum.tsv"]
    for name, value in options.items():
        flags += [f"--{name.replace('_', '-')}", str(value)]
    must_run(corpus.train_command(tmp_path, 6, *flags))
    translated = must_run(corpus.generate_command(tmp_path / "checkpoint_last.pt", "eng-deu")).stdout
    assert sum(line.startswith("D-") for line in translated.splitlines()) == 20
    benchmark = (sys.executable, ROOT / "scripts/bench_skip.py", tmp_path / "checkpoint_last.pt", corpus.data)
    table = must_run([*benchmark, "--thresholds", "0,0.5", "--rounds", "1"]).stdout.splitlines()[2:]
    assert [row.split(" | ")[0] for row in table] == ["| 0", "| 0.5"]
    shares = [[float(cell.strip("%")) for cell in row.split(" | ")[1:3]] for row in table]
    assert shares[0] == [0, 0] and sum(shares[1]) == pytest.approx(100, abs=0.2)
