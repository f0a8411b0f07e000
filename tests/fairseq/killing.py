"""`python killing.py UPDATE ARGUMENTS` is `fairseq-train ARGUMENTS`, killed by SIGKILL right after an update.

A test that watched the log instead would come too late where updates are fast.
"""

import os
import signal
import sys

import fairseq_cli.train
from fairseq.trainer import Trainer


def kill_after(update: int) -> None:
    """Kill this process before it trains or saves anything after this update; what is due at it is saved."""
    train_step = Trainer.train_step

    def killed(trainer, *args, **kwargs):
        if trainer.get_num_updates() >= update:
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(trainer, *args, **kwargs)

    Trainer.train_step = killed


if __name__ == "__main__":
    kill_after(int(sys.argv.pop(1)))
    fairseq_cli.train.cli_main()
