"""What a training reports, when, and under which names; and what is made of it afterwards."""

import json
import re
import shutil

import pytest
import torch
from fairseq import metrics

from moe_nmt.data import Corpus, Direction
from moe_nmt.evaluation.curves import read_curves, read_training_pairs
from moe_nmt.evaluation.expert_load import read_expert_load
from moe_nmt.evaluation.scalars import SCALARS
from moe_nmt.fairseq_plugin import criterion as module
from moe_nmt.fairseq_plugin import reporting
from moe_nmt.fairseq_plugin.criterion import MoELabelSmoothedCrossEntropyCriterion
from moe_nmt.training.curriculum import Curriculum
from tests.fairseq.conftest import SmallCorpus, must_run, run
from tests.fairseq.test_bad_input import refuse
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
        reporting.log_direction("eng-deu", 3.0, 10)
        line.reset()
        reporting.log_direction("eng-fra", 1.0, 10)
    values = line.get_smoothed_values()
    assert (values["ppl_eng-deu"], values["ppl_eng-fra"]) == (None, 2.0)


def test_the_loss_of_a_bucket_is_the_mean_of_its_directions_with_a_token():
    buckets = {"eng-deu": "high", "deu-eng": "high", "eng-fra": "low", "fra-eng": "low"}
    with metrics.aggregate("line") as line:
        reporting.log_direction("eng-deu", 3.0, 10)
        reporting.log_direction("eng-fra", 9.0, 10)
        reporting.log_buckets({Direction.parse(pair): bucket for pair, bucket in buckets.items()})
        line.reset()
        for loss, tokens in ((1.0, 30), (3.0, 10)):
            reporting.log_direction("eng-deu", loss, tokens)
        reporting.log_direction("deu-eng", 4.0, 1)
    values = line.get_smoothed_values()
    assert (values["bucket_nll_loss_high"], values["bucket_nll_loss_low"]) == (2.75, None)
    assert "bucket_nll_loss_very_low" not in values


def test_training_pairs_are_counted_over_shards(corpus, tmp_path):
    directions = [Direction.parse(pair) for pair in corpus.pairs]
    listed = {direction: Corpus.open(corpus.folder).counts(direction)["train"] for direction in directions}
    assert reporting.training_pairs([corpus.data], "train", directions) == listed
    for file in corpus.data.glob("train.eng-deu.*.idx"):
        shutil.copy(file, tmp_path)
    twice = reporting.training_pairs([corpus.data, tmp_path], "train", directions)
    german = {direction for direction in directions if "deu" in (direction.source, direction.target)}
    assert twice == {direction: count * (1 + (direction in german)) for direction, count in listed.items()}
    assert reporting.training_pairs([tmp_path], "train", directions) == {
        direction: count * (direction in german) for direction, count in listed.items()
    }
    assert reporting.training_pairs([tmp_path], "other", directions) == {}


@pytest.mark.parametrize("content", [b"", b"MMIDIDX\x00\x00cut", b"TNTIDX\x00\x00" + bytes(50)])
def test_what_is_no_index_has_no_known_training_pairs(content, tmp_path):
    for side in ("eng", "deu"):
        (tmp_path / f"train.eng-deu.{side}.idx").write_bytes(content)
    directions = [Direction("eng", "deu"), Direction("eng", "fra")]
    assert reporting.training_pairs([tmp_path], "train", directions) == {}


def test_thresholds_that_make_no_buckets_are_refused(corpus, tmp_path):
    done = run(corpus.train_command(tmp_path, 1, "--high-from", "5", "--low-from", "10"))
    refuse(done, "--low-from 10 and --high-from 5")


@pytest.fixture(scope="module")
def gated_run(corpus, tmp_path_factory):
    """A run of 40 updates with gates and a curriculum, validated also on sentences of its own training data."""
    folder = tmp_path_factory.mktemp("runs") / "gated"
    shutil.copytree(corpus.folder, folder / "corpus")
    data = folder / "corpus" / "data-bin"
    for file in data.glob("valid.*"):
        shutil.copy(file, data / f"train_probe.{file.name.removeprefix('valid.')}")
    starts = {Direction.parse(pair): 10 * ("ell" in pair) for pair in corpus.pairs}
    Curriculum(starts).write(folder / "curriculum.tsv")
    flags = (
        *("--moe-branch", "conditional(budget=0.5)", "--moe-losses", "[gate_budget(weight=0.1)]"),
        *("--valid-subset", "valid,train_probe", "--save-interval-updates", "20", "--no-epoch-checkpoints"),
        *("--curriculum-phases", folder / "curriculum.tsv", "--moe-log-per-layer", "--clip-norm", "1"),
        *("--high-from", "600", "--low-from", "200"),
        *("--log-format", "json", "--log-file", folder / "train.log", "--tensorboard-logdir", folder / "tensorboard"),
    )
    must_run(SmallCorpus(folder / "corpus").train_command(folder / "checkpoints", 40, *flags))
    return folder


def test_train_and_valid_losses_of_every_direction_are_in_tensorboard(corpus, gated_run):
    curves = read_curves(gated_run)
    for pair in corpus.pairs:
        valid = {10, 20, 40}
        for subset, steps in (("valid", valid), ("train_probe", valid), ("train_inner", set(range(5, 41, 5)))):
            losses, perplexities = (curves[subset][f"{name}_{pair}"] for name in ("nll_loss", "ppl"))
            assert losses.steps == perplexities.steps
            assert set(losses.steps) <= steps and len(losses.steps) >= (2 if subset != "train_inner" else 4)
            assert perplexities.values == pytest.approx([2**loss for loss in losses.values], rel=0.01)
        assert curves["train_probe"][f"nll_loss_{pair}"] == curves["valid"][f"nll_loss_{pair}"]
    assert all(0 < gate < 1 for gate in curves["train_inner"]["moe_gate"].values)


LAYER = r"(en|de)coder\.layers\.1\.feed_forward\.moe"
PLACEHOLDERS = {
    "DIRECTION": r"\w{3}-\w{3}",
    "BUCKET": "(high|low|very_low)",
    "LAYER": LAYER,
    "EXPERT": r"\d+",
    "NAME": "[a-z_]+",
    "METRIC": "loss",
}
ELSEWHERE = {"gb_free", "loss_scale", "moe_bytes_within", "moe_bytes_across"}
"""Names of the table that only trainings on GPUs, or with experts spread over ranks, write."""


def test_the_table_of_names_is_what_a_training_writes(gated_run):
    written = {name for scalars in read_curves(gated_run).values() for name in scalars}
    patterns = {}
    for name in (name for names in SCALARS for name in names.split(", ")):
        patterns[name] = re.sub("|".join(PLACEHOLDERS), lambda match: PLACEHOLDERS[match[0]], name)
    matches = {name: {w for w in written if re.fullmatch(pattern, w)} for name, pattern in patterns.items()}
    assert written - set().union(*matches.values()) == set()
    assert {name for name, found in matches.items() if not found} == ELSEWHERE


def test_losses_of_buckets_are_means_over_directions(corpus, gated_run):
    curves = read_curves(gated_run)
    for subset in ("valid", "train_probe"):
        of = curves[subset]
        assert "bucket_nll_loss_low" not in of
        for bucket, languages in (("high", ("deu", "fra")), ("very_low", ("ell",))):
            members = [f"nll_loss_{pair}" for pair in corpus.pairs if set(pair.split("-")) & set(languages)]
            rows = zip(*(of[member].values for member in members), strict=True)
            means = [sum(row) / len(members) for row in rows]
            assert of[f"bucket_nll_loss_{bucket}"].values == pytest.approx(means, abs=2e-3)
    assert read_training_pairs(gated_run) == {
        Direction.parse(pair): 150 if "ell" in pair else 600 for pair in corpus.pairs
    }


def test_loads_of_experts_sum_to_one_and_memory_only_rises(gated_run):
    of = read_curves(gated_run)["train_inner"]
    for layer in ("encoder.layers.1.feed_forward.moe", "decoder.layers.1.feed_forward.moe"):
        shares = list(zip(*(of[f"moe_load/{layer}/{expert}"].values for expert in range(4)), strict=True))
        assert [sum(row) for row in shares] == pytest.approx([1] * len(shares), abs=3e-3)
        largest = of[f"moe_max_load_{layer}"].values
        assert all(max(row) - 1e-3 <= top for row, top in zip(shares, largest, strict=True))
    memory = of["memory_gb"].values
    assert memory == sorted(memory) and 0.1 < memory[0] < 10
    assert [of["curriculum_phase"].values[i] for i in (0, 1, 2, -1)] == [1, 1, 2, 2]


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
    found = json.loads((tmp_path / "report" / "report.json").read_text())["runs"]["gated"]
    assert found["train_loss"] == "train_probe" and found["directions"]["eng-ell"]["end"]["gap"] == 0
    assert (tmp_path / "report" / "gates.gated.png").is_file()
    assert "counting" not in must_run(command).stderr


def test_report_says_why_a_run_has_no_routing(gated_run, tmp_path):
    broken = shutil.copytree(gated_run, tmp_path / "broken")
    (broken / "routing.json").unlink(missing_ok=True)
    checkpoint = broken / "checkpoints" / "checkpoint_best.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    done = must_run(["moe-nmt", "report", broken, "--output", tmp_path / "report"])
    assert "Traceback" not in done.stderr
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Without pictures of their routing" in page and "checkpoint_best.pt" in page
