"""`moe-nmt report` on small trainings whose numbers are known: what it computes, writes, says and refuses."""

import base64
import json
import re
import shutil

import pytest
from torch.utils.tensorboard import SummaryWriter

from moe_nmt.__main__ import main
from moe_nmt.data import Corpus, Direction
from moe_nmt.errors import UserError
from moe_nmt.evaluation.curves import Curve
from moe_nmt.evaluation.expert_load import ExpertLoad, read_expert_load, write_expert_load
from moe_nmt.evaluation.report_runs import (
    between,
    by_similarity,
    labels,
    mean,
    phase_starts,
    shown_layers,
    similarity,
)
from moe_nmt.evaluation.scalars import write_directions

PAIRS = {"eng-deu": 6000, "deu-eng": 6000, "eng-kat": 500}
VALID = {
    "eng-deu": {100: 4.0, 200: 2.0, 300: 2.5},
    "deu-eng": {100: 5.0, 200: 3.0, 300: 3.5},
    "eng-kat": {100: 6.0, 200: 5.0, 300: 7.0},
}
TRAIN = {
    "eng-deu": {50: 6.0, 100: 4.0, 150: 2.0, 200: 1.0, 250: 1.0, 300: 0.5},
    "deu-eng": {100: 5.0, 200: 2.0, 300: 1.5},
    "eng-kat": {100: 6.0, 180: 3.0},
}
LAYERS = [f"{stack}.layers.{i}.feed_forward.moe" for stack in ("encoder", "decoder") for i in (1, 3, 5)]
LOAD = {layer: [[4, 0, 0], [4, 3, 0], [0, 0, 0], [0, 0, 7]] for layer in LAYERS}


def write_curves(run, subsets):
    for subset, directions in subsets.items():
        with SummaryWriter(run / "tensorboard" / subset) as writer:
            for direction, points in directions.items():
                for step, value in points.items():
                    writer.add_scalar(direction if direction == "loss" else f"nll_loss_{direction}", value, step)


@pytest.fixture
def run(tmp_path):
    """A run whose best update is 200 of 300, without scores and routing."""
    folder = tmp_path / "runs" / "moe & co"
    write_curves(folder, {"valid": VALID | {"loss": {100: 9.0, 200: 8.0, 300: 8.5}}, "train_inner": TRAIN})
    counts = {Direction.parse(pair): {"train": n, "valid": 1, "test": 1} for pair, n in PAIRS.items()}
    Corpus.empty(folder / "corpus").adding(counts).save()
    return folder


@pytest.fixture
def report(tmp_path):
    """Runs the command on folders; returns the numbers and the page that it wrote."""

    def write(*arguments):
        output = tmp_path / "report"
        assert (
            main(["report", *map(str, arguments), "--output", str(output), "--high-from", "5000", "--low-from", "1000"])
            == 0
        )
        page = (output / "index.html").read_text(encoding="utf-8")
        return json.loads((output / "report.json").read_text(), parse_constant=pytest.fail), page, output

    return write


def row(*cells):
    """A row of a table as it stands in the page."""
    return "<tr>" + "".join(f'<td dir="auto">{cell}</td>' for cell in cells) + "</tr>"


def test_losses_and_gaps_of_directions_and_buckets(run, report):
    numbers, page, _ = report(run)
    found = numbers["runs"]["moe & co"]
    assert (found["best_update"], found["last_update"], found["train_loss"]) == (200, 300, "train_inner")
    assert found["directions"]["eng-deu"] == {
        "training_pairs": 6000,
        "bucket": "high",
        "chrf++": None,
        "lowest_valid": [2.0, 200],
        "best": {"train": 1.5, "valid": 2.0, "gap": 0.5},
        "end": {"train": 0.75, "valid": 2.5, "gap": 1.75},
    }
    assert found["directions"]["eng-kat"]["end"] == {"train": 3.0, "valid": 7.0, "gap": 4.0}
    assert list(found["buckets"]) == ["high", "very_low"]
    high = found["buckets"]["high"]
    assert high["directions"] == ["deu-eng", "eng-deu"]
    assert high["valid_curve"] == {"steps": [100, 200, 300], "values": [4.5, 2.5, 3.0]}
    assert high["train_curve"] == {"steps": [100, 200, 300], "values": [5.0, 1.75, 1.125]}
    assert high["end"] == {"train": 1.125, "valid": 3.0, "gap": 1.875}
    assert found["curves"]["train_inner"]["nll_loss_eng-kat"] == {"steps": [100, 180], "values": [6.0, 3.0]}
    cells = ("moe &amp; co", "200", "2.500", "0.750", "300", "3.000", "1.875", "2.500", "200", "–")
    assert row(*cells) in page and "Course of the training" not in page
    assert "under dropout" in page and "moe &amp; co: no routing.json." in page


def test_training_sentences_in_evaluation_mode_are_preferred(run, report):
    write_curves(run, {"train_probe": {pair: {100: 3.0, 200: 1.0, 300: 0.25} for pair in PAIRS}})
    numbers, page, _ = report(run)
    assert numbers["runs"]["moe & co"]["train_loss"] == "train_probe"
    assert numbers["runs"]["moe & co"]["directions"]["eng-kat"]["end"]["gap"] == 6.75
    assert "under dropout" not in page


def test_without_a_training_loss_there_is_no_gap(run, report):
    for file in (run / "tensorboard" / "train_inner").iterdir():
        file.unlink()
    numbers, page, output = report(run)
    assert numbers["runs"]["moe & co"]["buckets"]["high"]["end"] == {"train": None, "valid": 3.0, "gap": None}
    assert "there is no gap: moe &amp; co" in page and not (output / "gaps.png").exists()


def test_every_picture_of_the_page_is_there(run, report):
    write_expert_load(
        ExpertLoad(["eng", "deu", "fra", "kat"], LOAD, {LAYERS[0]: [0.5, 1.0, None, 0.0]}), run / "routing.json"
    )
    (run / "scores.json").write_text(json.dumps({"directions": {d: {"chrf++": 40.0 + n} for n, d in enumerate(PAIRS)}}))
    numbers, page, output = report(run)
    found = numbers["runs"]["moe & co"]
    assert [found["buckets"][bucket]["chrf++"] for bucket in ("high", "very_low")] == [40.5, 42.0]
    assert found["routing"]["similarity"][LAYERS[0]]["cosine"][0] == pytest.approx([1.0, 0.8, 0.0])
    assert found["routing"]["gates"] == {LAYERS[0]: [0.5, 1.0, None, 0.0]}
    kinds = ("expert_load", "similarity", "gates")
    pictures = {"learning_curves.png", "gaps.png", *(f"{kind}.moe & co.png" for kind in kinds)}
    assert {path.name for path in output.iterdir()} == pictures | {"index.html", "report.json"}
    for name in pictures:
        picture = (output / name).read_bytes()
        assert picture.startswith(b"\x89PNG") and base64.b64encode(picture).decode() in page
    assert page.count("<img ") == 5


def write_scalars(run, subset, **scalars):
    with SummaryWriter(run / "tensorboard" / subset) as writer:
        for name, points in scalars.items():
            for step, value in points.items():
                writer.add_scalar(name, value, step)


def test_speed_memory_routing_and_phases_over_the_training(run, report, tmp_path):
    write_scalars(
        run,
        "train_inner",
        loss={90: 3.0, 180: 2.0, 330: 1.0},
        wps={90: 900.0, 180: 3000.0, 330: 1100.0},
        wall={90: 60.0, 180: 120.0, 330: 7380.0},
        memory_gb={90: 1.0, 180: 2.25, 330: 2.25},
        moe_entropy={90: 1.5, 180: 1.25, 330: 0.75},
        moe_balance={90: 1.5, 180: 1.25, 330: 1.0625},
        curriculum_phase={90: 1.0, 180: 2.0, 330: 3.0},
    )
    write_scalars(run, "train", curriculum_phase={100: 1.0, 250: 2.0})
    dense = tmp_path / "dense"
    write_curves(dense, {"valid": {"eng-kat": {100: 7.0}, "loss": {100: 9.0}}})
    write_scalars(dense, "train_inner", loss={150: 2.0}, wps={150: 5000.0})
    numbers, page, output = report(run, dense, "--corpus", run / "corpus")
    assert row("moe &amp; co", "330", "2:03", "1,100", "2.25", "0.750", "1.06") in page
    assert row("dense", "150", "–", "5,000", "–", "–", "–") in page
    assert numbers["runs"]["moe & co"]["curriculum_phases"] == {"2": 100, "3": 250}
    assert numbers["runs"]["dense"]["curriculum_phases"] == {}
    assert "dotted lines" in page and (output / "course.png").is_file()


def test_a_phase_begins_after_the_last_update_before_it():
    inner = Curve([100, 200, 300, 400], [1.0, 1.0, 2.0, 4.0])
    assert phase_starts([inner]) == {2: 200, 4: 300}
    assert phase_starts([inner, Curve([250, 350], [1.0, 2.0])]) == {2: 250, 4: 350}
    assert phase_starts([Curve([5], [2.0])]) == phase_starts([]) == {}


def test_without_a_corpus_the_training_pairs_are_those_that_were_logged(run, report, capsys):
    shutil.rmtree(run / "corpus")
    logged = {Direction.parse(pair): 7 * count for pair, count in PAIRS.items()}
    for pairs in ({}, dict(list(logged.items())[:2]), logged):
        with SummaryWriter(run / "tensorboard" / "train") as writer:
            writer.add_text("directions", write_directions(pairs, dict.fromkeys(pairs, "low")))
        if pairs != logged:
            assert main(["report", str(run), "--output", str(run / "report")]) == 2
            assert re.search(
                r"the training pairs of (deu-eng|eng-kat) are unknown: .* --corpus", capsys.readouterr().err
            )
    found = report(run)[0]["runs"]["moe & co"]
    assert {pair: row["training_pairs"] for pair, row in found["directions"].items()} == {
        "eng-deu": 42000,
        "deu-eng": 42000,
        "eng-kat": 3500,
    }
    assert found["directions"]["eng-kat"]["bucket"] == "low"
    assert main(["report", str(run), "--output", str(run / "report"), "--corpus", str(run / "corpus")]) == 2
    assert "corpus is no corpus" in capsys.readouterr().err


def test_two_runs_on_one_corpus(run, report, tmp_path):
    other = tmp_path / "runs" / "dense"
    write_curves(other, {"valid": {"eng-kat": {100: float("nan"), 200: 6.0}, "loss": {100: 9.0, 200: 8.0}}})
    numbers, page, _ = report(run, other, "--corpus", run / "corpus")
    assert list(numbers["runs"]) == ["moe & co", "dense"]
    assert numbers["runs"]["dense"]["buckets"]["very_low"]["valid_curve"]["values"] == [None, 6.0]
    assert numbers["runs"]["dense"]["directions"]["eng-kat"]["lowest_valid"] == [6.0, 200]
    assert page.count('<td dir="auto">dense</td>') == 1


def test_scores_of_an_evaluation_are_found(run, report):
    (run / "evaluation").mkdir()
    for path, chrf in ((run / "evaluation", 30.0), (run, 40.0)):
        (path / "scores.json").write_text(json.dumps({"directions": {"eng-kat": {"chrf++": chrf}}}))
        assert report(run)[0]["runs"]["moe & co"]["directions"]["eng-kat"]["chrf++"] == chrf


def test_cosine_similarity_by_hand():
    load = ExpertLoad(["eng", "deu", "fra", "kat"], LOAD)
    names, matrix = similarity(load, LAYERS[0])
    assert names == ["eng", "deu", "kat"]
    assert matrix == [pytest.approx(row) for row in ([1, 0.8, 0], [0.8, 1, 0], [0, 0, 1])]


def test_layers_whose_experts_had_no_token_are_left_out(run, report):
    load = LOAD | {LAYERS[0]: [[0, 0, 0]] * 4}
    write_expert_load(ExpertLoad(["eng", "deu", "fra", "kat"], load, {LAYERS[0]: [0.0] * 4}), run / "routing.json")
    numbers, _, _ = report(run)
    assert list(numbers["runs"]["moe & co"]["routing"]["similarity"]) == LAYERS[1:]
    assert shown_layers(ExpertLoad(["eng"], {LAYERS[0]: [[0]], LAYERS[1]: [[1]]})) == [LAYERS[1]]


def test_first_and_last_layer_of_each_stack_are_shown():
    assert shown_layers(ExpertLoad(["eng"], LOAD)) == [LAYERS[0], LAYERS[2], LAYERS[3], LAYERS[5]]
    assert shown_layers(ExpertLoad(["eng"], {LAYERS[4]: [[1]]})) == [LAYERS[4]]


def test_alike_languages_are_put_side_by_side():
    groups = [0, 1, 0, 1, 2]
    matrix = [[1.0 if i == j else 0.9 if a == b else 0.1 for j, b in enumerate(groups)] for i, a in enumerate(groups)]
    assert [groups[i] for i in by_similarity("abcde", matrix)] == [2, 0, 0, 1, 1]


def test_readings_between_validations():
    readings = Curve([10, 20, 30, 60], [4.0, 2.0, 1.0, 0.5])
    assert between(readings, [5, 20, 35, 40]) == Curve([20, 35, 40], [3.0, 1.0, 1.0])


def test_means_only_where_every_curve_has_a_reading():
    assert mean([Curve([1, 2], [1.0, 3.0]), Curve([2, 3], [5.0, 9.0])]) == Curve([2], [4.0])
    assert mean([Curve([1], [1.0]), Curve([], [])]) == Curve([], [])


def test_an_expert_load_without_gates_can_be_read(tmp_path):
    path = tmp_path / "routing.json"
    path.write_text(json.dumps({"languages": ["eng"], "layers": {"encoder": [[1, 2]]}}))
    assert read_expert_load(path) == ExpertLoad(["eng"], {"encoder": [[1, 2]]}, {})
    for text in ("[1]", '{"languages": []}', "{"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"routing\.json holds no expert load: .*moe-nmt routing"):
            read_expert_load(path)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda run: (run / "corpus" / "languages.txt").unlink(), "corpus is no corpus"),
        (lambda run: (run / "scores.json").write_text("{}"), "scores.json holds no scores"),
        (lambda run: (run / "routing.json").write_text("{}"), "routing.json holds no expert load"),
        (
            lambda run: (run / "tensorboard" / "valid").rename(run / "tensorboard" / "dev"),
            "no validation loss of a direction",
        ),
    ],
)
def test_refusals(run, tmp_path, capsys, spoil, sentence):
    spoil(run)
    assert main(["report", str(run), "--output", str(tmp_path / "report")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_runs_are_labelled_by_as_much_of_their_paths_as_tells_them_apart(tmp_path):
    assert labels([tmp_path / "a" / "moe", tmp_path / "dense"]) == ["moe", "dense"]
    assert labels([tmp_path / row / seed for row in ("moe", "eom") for seed in "12"]) == [
        "moe/1",
        "moe/2",
        "eom/1",
        "eom/2",
    ]
    with pytest.raises(UserError, match=r"a, .*a is named twice"):
        labels([tmp_path / "a", tmp_path / "b" / ".." / "a"])


def test_the_best_update_is_that_of_the_metric_of_the_best_checkpoint(run, report):
    write_curves(run, {"valid": {"loss": {400: 7.0}}})
    assert report(run)[0]["runs"]["moe & co"]["best_update"] == 400
    with SummaryWriter(run / "tensorboard" / "valid") as writer:
        for step, value in {100: 3.0, 200: 4.0}.items():
            writer.add_scalar("nll_loss", value, step)
        writer.add_scalar("best_nll_loss", 3.0, 200)
    assert report(run)[0]["runs"]["moe & co"]["best_update"] == 100
