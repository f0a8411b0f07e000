"""What the criterion reports on routing and directions, and when; and what is made of it afterwards."""

import json
import re
import shutil

import pytest
import torch
from fairseq import metrics

from moe_nmt.evaluation.curves import read_curves
from moe_nmt.evaluation.expert_load import read_expert_load
from moe_nmt.fairseq_plugin import criterion as module
from moe_nmt.fairseq_plugin import task as task_module
from moe_nmt.fairseq_plugin.criterion import MoELabelSmoothedCrossEntropyCriterion
from tests.fairseq.conftest import SmallCorpus, must_run
from tests.fairseq.test_model import Task, batch, build

LOSSES = "[load_balancing(weight=0.1)]"


def reports(log_interval: int, updates: int, training: bool, losses: str = LOSSES, moe_freq: int = 1) -> list[int]:
    """The updates, counted from 1, whose log has figures of the directions, and of the routing of a sparse model."""
    model = build(moe_freq=moe_freq).train(training)
    criterion = MoELabelSmoothedCrossEntropyCriterion(Task(), False, 0.1, moe_losses=losses, log_interval=log_interval)
    found = []
    for done in range(updates):
        criterion.set_num_updates(done)
        log = criterion(model, batch())[2]
        keys = {key for key in log if key.startswith("moe_")}
        assert keys in (set(), keys | {"moe_batches", "moe_load_balancing_loss", "moe_entropy", "moe_unused"})
        assert bool(keys) == ("direction_nll" in log and moe_freq > 0)
        found += [done + 1] if "direction_nll" in log else []
    return found


@pytest.mark.parametrize("losses", ["[load_balancing(weight=0.1)]", "[load_balancing(weight=0.0)]"])
def test_ten_updates_of_a_log_interval_report(losses):
    assert reports(1, 4, True, losses) == reports(19, 4, True, losses) == [1, 2, 3, 4]
    assert reports(50, 22, True, losses) == [5, 10, 15, 20]
    assert reports(50, 4, False, losses) == [1, 2, 3, 4]


def test_a_dense_model_reports_on_directions():
    assert reports(50, 12, True, moe_freq=0) == [5, 10]
    assert reports(50, 2, False, moe_freq=0) == [1, 2]


def test_what_no_log_wants_is_not_computed(monkeypatch):
    def refuse(*args):
        raise AssertionError("computed")

    class Refusing:
        weight = 0.0
        __call__ = refuse

    model = build(moe_freq=1).train()
    losses = "[load_balancing(weight=0.0), z_loss(weight=0.1)]"
    criterion = MoELabelSmoothedCrossEntropyCriterion(Task(), False, 0.1, moe_losses=losses, log_interval=100)
    monkeypatch.setattr(module, "summarize", refuse)
    monkeypatch.setattr(criterion, "direction_log", refuse)
    monkeypatch.setitem(criterion.routing_losses, "load_balancing", Refusing())
    assert criterion(model, batch())[0].isfinite()


def test_an_update_without_a_report_has_the_same_loss():
    model = build(moe_freq=1).train()
    losses = {
        interval: MoELabelSmoothedCrossEntropyCriterion(
            Task(), False, 0.1, moe_losses="[load_balancing(weight=0.5)]", log_interval=interval
        )(model, batch())[0]
        for interval in (1, 100)
    }
    assert torch.equal(losses[1], losses[100])


def test_fairseq_hands_over_its_log_interval(corpus, tmp_path):
    flags = ("--log-interval", "20", "--disable-validation", "--no-save")
    log = must_run(corpus.train_command(tmp_path, 41, *flags)).stdout
    lines = [line for line in log.splitlines() if "train_inner" in line]
    assert len(lines) == 2
    entropies = [float(re.search(r"moe_entropy=([\d.]+)", line)[1]) for line in lines]
    assert all(0 < entropy < 1.4 for entropy in entropies)


def test_gates_are_reported_and_missed_budgets_warned_of_once(caplog):
    module.warn_of_gates_without_budget.cache_clear()
    model = build(moe_freq=1, moe_branch="conditional(budget=0.5)").eval()
    criterion = MoELabelSmoothedCrossEntropyCriterion(Task(), False, 0.1, moe_losses=LOSSES, moe_log_per_layer=True)
    logs = [criterion(model, batch())[2] for _ in range(2)]
    gates = {key: value for key, value in logs[0].items() if key.startswith("moe_gate_")}
    assert len(gates) == 4 and all(0 < gate < 1 for gate in gates.values())
    assert logs[0]["moe_gate"] == pytest.approx(sum(gates.values()) / 4)
    assert [record.message.split(":")[1] for record in caplog.records] == [" add gate_budget to --moe-losses"]

    module.warn_of_gates_without_budget.cache_clear()
    losses = "[gate_budget(weight=0.1)]"
    MoELabelSmoothedCrossEntropyCriterion(Task(), False, 0.1, moe_losses=losses)(model, batch())
    assert len(caplog.records) == 1
    assert "moe_gate" not in MoELabelSmoothedCrossEntropyCriterion(Task(), False, 0.1)(build(moe_freq=1), batch())[2]


def test_a_direction_without_a_token_since_the_last_line_has_no_perplexity():
    with metrics.aggregate("line") as line:
        task_module.log_direction("eng-deu", 3.0, 10)
        line.reset()
        task_module.log_direction("eng-fra", 1.0, 10)
    values = line.get_smoothed_values()
    assert (values["ppl_eng-deu"], values["ppl_eng-fra"]) == (None, 2.0)


@pytest.fixture(scope="module")
def gated_run(corpus, tmp_path_factory):
    """A run of 40 updates with gates, validated also on sentences of its own training data."""
    folder = tmp_path_factory.mktemp("runs") / "gated"
    shutil.copytree(corpus.folder, folder / "corpus")
    data = folder / "corpus" / "data-bin"
    for file in data.glob("valid.*"):
        shutil.copy(file, data / f"train_probe.{file.name.removeprefix('valid.')}")
    flags = (
        *("--moe-branch", "conditional(budget=0.5)", "--moe-losses", "[gate_budget(weight=0.1)]"),
        *("--valid-subset", "valid,train_probe", "--save-interval-updates", "20", "--no-epoch-checkpoints"),
        *("--log-format", "json", "--log-file", folder / "train.log", "--tensorboard-logdir", folder / "tensorboard"),
    )
    must_run(SmallCorpus(folder / "corpus").train_command(folder / "checkpoints", 40, *flags))
    return folder


def test_train_and_valid_losses_of_every_direction_are_in_tensorboard(corpus, gated_run):
    curves = read_curves(gated_run)
    for pair in corpus.pairs:
        for subset, steps in (("valid", {20, 40}), ("train_probe", {20, 40}), ("train_inner", set(range(5, 41, 5)))):
            losses, perplexities = (curves[subset][f"{name}_{pair}"] for name in ("nll_loss", "ppl"))
            assert losses.steps == perplexities.steps
            assert set(losses.steps) <= steps and len(losses.steps) >= (2 if subset != "train_inner" else 4)
            assert perplexities.values == pytest.approx([2**loss for loss in losses.values], rel=0.01)
        assert curves["train_probe"][f"nll_loss_{pair}"] == curves["valid"][f"nll_loss_{pair}"]
    assert all(0 < gate < 1 for gate in curves["train_inner"]["moe_gate"].values)


def test_train_and_valid_losses_of_every_direction_are_in_the_json_log(corpus, gated_run):
    lines = (gated_run / "train.log").read_text().splitlines()
    logged = [json.loads(line) for line in lines if line.startswith('{"epoch"')]
    for pair in corpus.pairs:
        for key in (f"nll_loss_{pair}", f"ppl_{pair}", f"valid_nll_loss_{pair}", f"valid_ppl_{pair}"):
            values = [line[key] for line in logged if key in line]
            assert any(values) and all(value is None or float(value) > 0 for value in values)


def test_report_counts_the_routing_once(gated_run, tmp_path):
    command = [
        "moe-nmt",
        "report",
        gated_run,
        "--output",
        tmp_path / "report",
        "--high-from",
        "600",
        "--low-from",
        "200",
    ]
    assert "counting the expert load" in must_run(command).stderr
    load = read_expert_load(gated_run / "routing.json")
    assert list(load.gates) == list(load.layers) and len(load.gates) == 2
    assert all(0 < gate < 1 for gates in load.gates.values() for gate in gates)
    run = json.loads((tmp_path / "report" / "report.json").read_text())["runs"]["gated"]
    assert run["train_loss"] == "train_probe" and run["directions"]["eng-ell"]["end"]["gap"] == 0
    assert (tmp_path / "report" / "gates.gated.png").is_file()
    assert "counting" not in must_run(command).stderr


def test_report_says_why_a_run_has_no_routing(gated_run, tmp_path):
    run = shutil.copytree(gated_run, tmp_path / "broken")
    (run / "routing.json").unlink(missing_ok=True)
    checkpoint = run / "checkpoints" / "checkpoint_best.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    done = must_run(["moe-nmt", "report", run, "--output", tmp_path / "report"])
    assert "Traceback" not in done.stderr
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Without pictures of their routing" in page and "checkpoint_best.pt" in page
