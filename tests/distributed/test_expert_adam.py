"""`moe_adam` where gradients are averaged over two processes: which experts were touched is seen after that."""

import dataclasses
from pathlib import Path

import torch

from tests.distributed.test_data_parallel import corpus, train_on_two_ranks  # noqa: F401
from tests.fairseq.conftest import SmallCorpus


class WithTouchedOnly(SmallCorpus):
    def train_command(self, save_dir: Path, updates: int, *flags: str):
        flags = ("--optimizer", "moe_adam", "--moe-adam-touched-only", "--disable-validation", *flags)
        flags += ("--moe-experts", "ffn(count=32)", "--moe-router", "top_k(k=1)", "--clip-norm", "1.0")
        return super().train_command(save_dir, updates, *flags)


def test_two_ranks_train_and_resume(corpus, tmp_path):  # noqa: F811
    corpus = WithTouchedOnly(**dataclasses.asdict(corpus))
    train_on_two_ranks(corpus, tmp_path, 4)
    assert "@ 4 updates" in train_on_two_ranks(corpus, tmp_path, 8)[0]
    entries = torch.load(tmp_path / "checkpoint_last.pt")["last_optimizer_state"]["state"].values()
    steps = [entry["step"] for entry in entries]
    assert {step for step in steps if isinstance(step, int)} == {8}
    assert all(step.shape == (32,) and step.max() <= 8 for step in steps if isinstance(step, torch.Tensor))
