"""Directions join a real training exactly at their updates, and a kill in any phase changes nothing."""

import json
import multiprocessing
import os
import re
import sys

import fairseq_cli.train
import pytest
import torch
from fairseq import checkpoint_utils

from moe_nmt.data import Direction
from moe_nmt.errors import UserError
from moe_nmt.fairseq_plugin.task import read_curriculum
from moe_nmt.training.curriculum import Curriculum
from tests.fairseq.conftest import run
from tests.fairseq.killing import kill_after
from tests.fairseq.test_bad_input import refuse
from tests.fairseq.test_resume import assert_equal, final_state

WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(["fairseq_cli.train", "moe_nmt.fairseq_plugin"])
"""Trainings are forked from a process that has imported fairseq already, which saves seconds for each."""

STARTS = {"eng-fra": 0, "fra-eng": 0, "eng-deu": 11, "deu-eng": 11, "eng-ell": 24, "ell-eng": 24}
UPDATES = 36


def write(path, starts=STARTS):
    Curriculum({Direction.parse(name): start for name, start in starts.items()}).write(path)
    return path


def command(corpus, tmp_path, name: str, *flags: str, updates: int = UPDATES):
    file = write(tmp_path / "curriculum.tsv")
    flags = (
        "--log-format",
        "json",
        "--log-interval",
        "1",
        "--save-interval-updates",
        "4",
        "--keep-interval-updates",
        "1",
        *flags,
    )
    return corpus.train_command(
        tmp_path / name, updates, "--curriculum-phases", str(file), "--no-epoch-checkpoints", *flags
    )


def fairseq_train(command: list[str], log: str, kill_at: int | None) -> None:
    """The command fairseq-train, in a process of its own."""
    if kill_at is not None:
        kill_after(kill_at)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    sys.argv = command
    fairseq_cli.train.cli_main()


def train(command, log, kill_at: int | None = None) -> str:
    """Train to the end, or to this update and then SIGKILL; returns the log."""
    process = WARM.Process(target=fairseq_train, args=([str(c) for c in command], str(log), kill_at))
    process.start()
    process.join(300)
    text = log.read_text()
    assert process.exitcode == (0 if kill_at is None else -9), text[-3000:]
    log.unlink()
    return text


def updates_of(log: str) -> dict[int, dict]:
    """What the log says in JSON of each update."""
    lines = [json.loads(line[line.index("{") :]) for line in log.splitlines() if "| train_inner | {" in line]
    return {int(line["num_updates"]): line for line in lines}


def directions_in(line: dict) -> set[str]:
    return {name for name in STARTS if line.get(f"nll_loss_{name}") not in (None, "None")}


def check_phases(updates: dict[int, dict], upto: int = UPDATES) -> None:
    """Each update has a batch of active directions only, and in each phase all of them are seen."""
    assert sorted(updates) == list(range(1, upto + 1))
    for phase, (start, end) in enumerate([(0, 11), (11, 24), (24, upto)], start=1):
        active = {name for name, joins in STARTS.items() if joins <= start}
        lines = [updates[update] for update in range(start + 1, end + 1)]
        assert set().union(*map(directions_in, lines)) == active
        assert {int(line["curriculum_phase"]) for line in lines} == {phase}
        assert {int(line["curriculum_directions"]) for line in lines} == {len(active)}


@pytest.mark.parametrize(
    "flags",
    [
        ("--update-freq", "2", "--disable-validation"),
        ("--update-freq", "1,2", "--virtual-epoch-size", "300", "--disable-validation"),
    ],
)
def test_killed_in_each_phase_and_resumed(corpus, tmp_path, flags):
    log = tmp_path / "log"
    unbroken = train(command(corpus, tmp_path, "unbroken", *flags), log)
    check_phases(updates_of(unbroken))
    announced = re.findall(r"curriculum: (phase \d of 3 from update \d+: 2 new directions: .*)", unbroken)
    assert announced == [
        "phase 1 of 3 from update 0: 2 new directions: eng-fra, fra-eng",
        "phase 2 of 3 from update 11: 2 new directions: eng-deu, deu-eng",
        "phase 3 of 3 from update 24: 2 new directions: eng-ell, ell-eng",
    ]
    killed = command(corpus, tmp_path, "killed", *flags)
    for update in (6, 18, 30):
        train(killed, log, kill_at=update)
    last = train(killed, log)
    assert re.search(r"Loaded checkpoint .* @ 28 updates", last) and "given now rule" not in last
    assert_equal(final_state(tmp_path / "killed"), final_state(tmp_path / "unbroken"))


def test_resumed_where_a_phase_ends_and_with_another_curriculum(corpus, tmp_path):
    log = tmp_path / "log"
    first = train(command(corpus, tmp_path, "run", "--disable-validation", updates=11), log)
    second = train(command(corpus, tmp_path, "run", "--disable-validation", updates=15), log)
    assert "given now rule" not in second
    training = command(corpus, tmp_path, "run", "--disable-validation", updates=20)
    write(tmp_path / "curriculum.tsv", STARTS | {"eng-ell": 17, "ell-eng": 17})
    third = train(training, log)
    assert third.count("those given now rule") == 1
    updates = updates_of(first) | updates_of(second) | updates_of(third)
    assert sorted(updates) == list(range(1, 21))
    phases = [int(updates[update]["curriculum_phase"]) for update in sorted(updates)]
    assert phases == [1] * 11 + [2] * 6 + [3] * 3
    assert {"eng-ell", "ell-eng"} & set().union(*(directions_in(updates[update]) for update in (18, 19, 20)))


def test_all_directions_are_validated_and_what_fairseq_resets(corpus, tmp_path):
    log = train(command(corpus, tmp_path, "run", updates=6), tmp_path / "log")
    validated = json.loads(next(line for line in log.splitlines() if "| valid | {" in line).split("| valid | ")[1])
    assert all(f"valid_nll_loss_{name}" in validated for name in STARTS)
    assert "valid_curriculum_phase" not in validated
    for anew, upto, phases in (
        (("--reset-meters", "--reset-dataloader"), 14, [1] * 5 + [2] * 3),
        (("--reset-optimizer",), 12, [1] * 11 + [2]),
    ):
        training = command(corpus, tmp_path, "run", "--disable-validation", *anew, updates=upto)
        lines = updates_of(train(training, tmp_path / "log")).values()
        assert [int(line["curriculum_phase"]) for line in lines] == phases
    (tmp_path / "curriculum.tsv").unlink()  # a checkpoint is used without its curriculum
    _, _, task = checkpoint_utils.load_model_ensemble_and_task([str(tmp_path / "run/checkpoint_last.pt")])
    assert task.curriculum is None


def test_a_curriculum_of_other_directions(corpus, tmp_path):
    training = command(corpus, tmp_path, "run")
    write(tmp_path / "curriculum.tsv", {"eng-fra": 0})
    refuse(run(training), "curriculum.tsv", "no row for", "--lang-pairs")
    directions = [Direction.parse(name) for name in STARTS]
    with pytest.raises(UserError, match=r"--lang-pairs.*curriculum.tsv.*'deu-fra'"):
        read_curriculum(write(tmp_path / "curriculum.tsv", STARTS | {"deu-fra": 5}), directions)
