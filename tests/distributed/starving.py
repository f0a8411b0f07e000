"""`python starving.py UPDATE ARGUMENTS` is `fairseq-train ARGUMENTS`, but rank 1 has no memory left after an update."""

import os
import resource
import sys
from pathlib import Path

import fairseq_cli.train
import torch
from fairseq.trainer import Trainer


def starve_after(update: int) -> None:
    """Have the decoder ask for more memory than this process may have, in the step after this update."""
    train_step = Trainer.train_step

    def starved(trainer, *args, **kwargs):
        if trainer.get_num_updates() == update:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**29, resource.RLIM_INFINITY))
            trainer.get_model().decoder.register_forward_pre_hook(lambda *_: torch.empty(2**28).fill_(0))
        return train_step(trainer, *args, **kwargs)

    Trainer.train_step = starved


if __name__ == "__main__":
    update = int(sys.argv.pop(1))
    if os.environ["RANK"] == "1":
        starve_after(update)
    fairseq_cli.train.cli_main()
