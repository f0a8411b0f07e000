"""The optimizer `moe_adam` under fairseq's trainer."""

import argparse
import copy

import pytest
import torch
from fairseq.optim.adam import FairseqAdam
from torch import nn

from moe_nmt.errors import UserError
from moe_nmt.fairseq_plugin.optimizer import MoEAdam
from tests.fairseq.conftest import must_run, run
from tests.fairseq.test_resume import check_resumes_exactly, final_state

MOE_ADAM = ("--optimizer", "moe_adam")
TOUCHED_ONLY = (*MOE_ADAM, "--moe-adam-touched-only", "--weight-decay", "0.01")


def config(**options):
    defaults = {"adam_betas": "(0.9, 0.98)", "adam_eps": 1e-6, "weight_decay": 0.01, "lr": [0.01]}
    return argparse.Namespace(**defaults | {"moe_adam_touched_only": False, "fp16_adam_stats": False} | options)


@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e6])
def test_updates_are_those_of_fairseqs_adam(max_norm):
    theirs = [nn.Parameter(torch.randn(*shape)) for shape in ((4, 6), (5,))]
    ours = copy.deepcopy(theirs)
    optimizers = {FairseqAdam(config(), theirs): theirs, MoEAdam(config(), ours): ours}
    for _ in range(4):
        gradients = [100 * torch.randn_like(p) for p in ours]
        norms = []
        for optimizer, parameters in optimizers.items():
            optimizer.zero_grad()
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.multiply_grads(1 / 50)
            norms.append(optimizer.clip_grad_norm(max_norm))
            optimizer.step()
        torch.testing.assert_close(*norms)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("betas", ["0.9", "(0.9, 1.0)", "nonsense", "(0.9, 0.98, 0.99)"])
def test_betas_are_checked(betas):
    with pytest.raises(UserError, match="--adam-betas"):
        MoEAdam(config(adam_betas=betas), [nn.Parameter(torch.ones(1))])


@pytest.mark.parametrize("flags", [MOE_ADAM, TOUCHED_ONLY])
def test_resume_is_exact(corpus, tmp_path, flags):
    check_resumes_exactly(corpus, tmp_path, *flags, "--clip-norm", "1.0", "--update-freq", "2")


@pytest.mark.parametrize(
    "flags", [(*MOE_ADAM, "--bf16"), (*MOE_ADAM, "--fp16"), (*TOUCHED_ONLY, "--bf16", "--memory-efficient-bf16")]
)
def test_half_precision(corpus, tmp_path, flags):
    flags = ("--disable-validation", *flags)
    must_run(corpus.train_command(tmp_path, 3, *flags))
    assert "@ 3 updates" in must_run(corpus.train_command(tmp_path, 5, *flags)).stdout
    moments = [entry["exp_avg"] for entry in final_state(tmp_path)[1].values()]
    assert {moment.dtype for moment in moments} == {torch.float32}


@pytest.mark.parametrize("flags", [("--bf16",), ("--moe-freq", "0")])
def test_touched_only_wants_to_see_experts(corpus, tmp_path, flags):
    done = run(corpus.train_command(tmp_path, 3, *TOUCHED_ONLY, *flags))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("moe_nmt: error: --moe-adam-touched-only finds no experts")


def test_a_checkpoint_of_another_optimizer_is_refused_and_can_be_taken_without_its_state(corpus, tmp_path):
    must_run(corpus.train_command(tmp_path, 2, "--disable-validation"))
    refused = run(corpus.train_command(tmp_path, 4, "--disable-validation", *MOE_ADAM))
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "--reset-optimizer" in refused.stderr.splitlines()[-1]
    must_run(corpus.train_command(tmp_path, 4, "--disable-validation", *MOE_ADAM, "--reset-optimizer"))
