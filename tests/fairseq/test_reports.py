"""What the criterion reports on the routing, and when."""

import re

import pytest
import torch

from moe_nmt.fairseq_plugin import criterion as module
from moe_nmt.fairseq_plugin.criterion import MoELabelSmoothedCrossEntropyCriterion
from tests.fairseq.conftest import must_run
from tests.fairseq.test_model import Task, batch, build


def reports(log_interval: int, updates: int, training: bool, losses: str = "[load_balancing(weight=0.1)]") -> list[int]:
    """The updates, counted from 1, whose log has figures of the routing."""
    model = build(moe_freq=1).train(training)
    criterion = MoELabelSmoothedCrossEntropyCriterion(Task(), False, 0.1, moe_losses=losses, log_interval=log_interval)
    found = []
    for done in range(updates):
        criterion.set_num_updates(done)
        keys = {key for key in criterion(model, batch())[2] if key.startswith("moe_")}
        assert keys in (set(), keys | {"moe_batches", "moe_load_balancing_loss", "moe_entropy", "moe_unused"})
        found += [done + 1] if keys else []
    return found


@pytest.mark.parametrize("losses", ["[load_balancing(weight=0.1)]", "[load_balancing(weight=0.0)]"])
def test_ten_updates_of_a_log_interval_report(losses):
    assert reports(1, 4, True, losses) == reports(19, 4, True, losses) == [1, 2, 3, 4]
    assert reports(50, 22, True, losses) == [5, 10, 15, 20]
    assert reports(50, 4, False, losses) == [1, 2, 3, 4]


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
