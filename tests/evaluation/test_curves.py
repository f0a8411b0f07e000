"""Reading back what a training wrote to TensorBoard."""

import subprocess
import sys

import pytest
from torch.utils.tensorboard import SummaryWriter

from moe_nmt.data import Direction
from moe_nmt.errors import UserError
from moe_nmt.evaluation.curves import Curve, read_curves, read_training_pairs
from moe_nmt.evaluation.scalars import read_directions, scalars_table, write_directions


def write(folder, start, **curves):
    """One event file, as one process leaves it; `start` tells its name and time from those of the others."""
    writer = SummaryWriter(folder, filename_suffix=f".{start}")
    for name, points in curves.items():
        for step, value in points.items():
            writer.add_scalar(name, value, step, walltime=start + step)
    writer.add_text("sys.argv", "fairseq-train")
    writer.close()


def test_subsets_and_scalars_by_name(tmp_path):
    write(tmp_path / "valid", 0, **{"loss": {10: 2.0, 20: 1.5}, "nll_loss_eng-deu": {20: 0.25}})
    write(tmp_path / "train_inner", 0, loss={5: 4.0})
    expected = {
        "valid": {"loss": Curve([10, 20], [2.0, 1.5]), "nll_loss_eng-deu": Curve([20], [0.25])},
        "train_inner": {"loss": Curve([5], [4.0])},
    }
    assert read_curves(tmp_path) == expected


def test_the_folder_of_the_run_will_do(tmp_path):
    write(tmp_path / "run" / "tensorboard" / "valid", 0, loss={1: 1.0})
    assert read_curves(tmp_path / "run") == read_curves(tmp_path / "run" / "tensorboard")


def test_no_reading_of_a_long_training_is_left_out(tmp_path):
    write(tmp_path / "train_inner", 0, loss={step: float(step) for step in range(3000)})
    assert read_curves(tmp_path)["train_inner"]["loss"].steps == list(range(3000))


@pytest.mark.parametrize("names", ["12", "21"])
def test_after_a_resume_the_later_reading_of_a_step_holds(tmp_path, names):
    """Whatever the order in which the files' names sort."""
    sessions = {1000: {10: 5.0, 20: 4.0, 30: 3.0}, 2000: {20: 4.5, 25: 4.25}}
    (tmp_path / "valid").mkdir()
    for name, (start, loss) in zip(names, sessions.items(), strict=True):
        write(tmp_path / name, start, loss=loss)
        (file,) = (tmp_path / name).iterdir()
        file.rename(tmp_path / "valid" / f"events.out.tfevents.170000000{name}.host.1.0")
    assert read_curves(tmp_path)["valid"]["loss"] == Curve([10, 20, 25, 30], [5.0, 4.5, 4.25, 3.0])


def test_damaged_files_cost_only_what_is_damaged(tmp_path):
    write(tmp_path / "valid", 0, loss={step: 5.0 for step in range(100)})
    (whole,) = (tmp_path / "valid").iterdir()
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "valid" / "events.out.tfevents.1.host.1.0").write_bytes(b"rubbish " * 100)
    steps = read_curves(tmp_path)["valid"]["loss"].steps
    assert steps == list(range(len(steps))) and 30 < len(steps) < 70
    write(tmp_path / "valid", 1000, loss={20: 3.0, 200: 2.0})
    assert read_curves(tmp_path)["valid"]["loss"] == Curve(
        [*steps, 200], [*[5.0] * 20, 3.0, *[5.0] * (len(steps) - 21), 2.0]
    )


def test_training_pairs_are_those_of_the_last_session(tmp_path):
    for start, count in ((2000, 7), (1000, 600)):
        with SummaryWriter(tmp_path / "train", filename_suffix=f".{start}") as writer:
            pairs = {Direction("eng", "deu"): count, Direction("deu", "eng"): 5}
            table = write_directions(pairs, dict.fromkeys(pairs, "low"))
            writer.add_text("directions", table, walltime=start)
    assert read_training_pairs(tmp_path) == {Direction("eng", "deu"): 7, Direction("deu", "eng"): 5}


@pytest.mark.parametrize("subset", ["train", "valid"])
def test_a_training_that_logged_no_directions_has_no_training_pairs(tmp_path, subset):
    write(tmp_path / subset, 0, loss={1: 1.0})
    assert read_training_pairs(tmp_path) == {}


@pytest.mark.parametrize(
    "text", ["", "rubbish", "a\nb\n| eng-deu | many | low |", "a\nb\n| eng | 5 | low |", "a\nb\n|c|"]
)
def test_what_is_no_table_of_directions_has_none(text):
    assert read_directions(text) == {}


def test_the_table_of_names_is_whole():
    lines = scalars_table().splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "| `nll_loss`, `ppl` |" in scalars_table()


def test_a_folder_without_curves_is_refused(tmp_path):
    for folder in ("missing", "empty", "rubbish"):
        if folder != "missing":
            (tmp_path / folder / "valid").mkdir(parents=True)
        if folder == "rubbish":
            (tmp_path / folder / "valid" / "events.out.tfevents.1.host.1.0").write_bytes(b"rubbish " * 100)
        with pytest.raises(UserError, match=f"{folder} has no curves.*--tensorboard-logdir"):
            read_curves(tmp_path / folder)


def test_importing_is_cheap():
    code = "import sys, moe_nmt.evaluation.curves; print([m for m in ('tensorboard', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
