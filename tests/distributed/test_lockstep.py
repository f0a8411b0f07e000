"""Ranks with different amounts of work that take part in one another's collectives: processes over gloo."""

import functools
import random
from datetime import timedelta

import pytest
import torch
from torch import distributed, multiprocessing

from moe_nmt.distributed.lockstep import LockStep
from moe_nmt.distributed.processes import end_process, free_port

RANKS, STAGES = 3, 4


def work(rank, seed):
    """The stages that a rank goes through by itself; the second has none."""
    draw = random.Random(f"{seed} {rank}")
    return [] if rank == 1 else [draw.randrange(STAGES) for _ in range(draw.randrange(1, 30))]


def on_rank(rank, port, folder):
    meeting = {"init_method": f"tcp://127.0.0.1:{port}", "timeout": timedelta(seconds=300)}
    distributed.init_process_group("gloo", **meeting, rank=rank, world_size=RANKS)
    seen = []

    def do(stage, own):
        everyone = [torch.zeros(2, dtype=torch.int64) for _ in range(RANKS)]
        distributed.all_gather(everyone, torch.tensor([stage, own]))
        seen.append([pair.tolist() for pair in everyone])

    lock_step = LockStep(distributed.group.WORLD, [functools.partial(do, stage, 0) for stage in range(STAGES)])
    for seed in range(3):
        for stage in work(rank, seed):
            lock_step.enter(stage)
            do(stage, 1)
        lock_step.finish()
        seen.append("end")
    torch.save(seen, f"{folder}/{rank}.pt")
    end_process()


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lockstep")
    multiprocessing.spawn(on_rank, (free_port(), folder), nprocs=RANKS)
    everyone = [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]
    assert everyone[0] == everyone[1] == everyone[2]
    return everyone[0]


def test_all_ranks_do_the_same_stage(seen):
    assert all(len({stage for stage, _ in turn}) == 1 for turn in seen if turn != "end")


def test_every_rank_does_its_own_work_in_order_and_serves_the_rest(seen):
    for rank in range(RANKS):
        expected = [turn for seed in range(3) for turn in [*work(rank, seed), "end"]]
        assert [turn if turn == "end" else turn[rank][0] for turn in seen if turn == "end" or turn[rank][1]] == expected


def test_no_turn_is_taken_that_nobody_wants(seen):
    assert all(any(own for _, own in turn) for turn in seen if turn != "end")
    turns = sum(turn != "end" for turn in seen)
    assert turns < sum(len(work(rank, seed)) for rank in range(RANKS) for seed in range(3))
