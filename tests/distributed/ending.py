"""`ENDING="RANK UPDATE WAY" python ending.py ARGUMENTS` is `fairseq-train ARGUMENTS` on ranks of which one ends.

It ends right after an update, what is due at it being saved: by a signal that it sends to itself, or by an exception.
Processes that fairseq spawns import this file too.
"""

import os
import signal

import fairseq_cli.train
from fairseq.trainer import Trainer
from torch import distributed

from moe_nmt.errors import UserError

RANK, UPDATE, WAY = os.environ["ENDING"].split()
EXCEPTIONS = {"UserError": UserError, "ArithmeticError": ArithmeticError}

train_step = Trainer.train_step


def train_step_or_end(trainer, *args, **kwargs):
    if trainer.get_num_updates() >= int(UPDATE) and str(distributed.get_rank()) in RANK.split(","):
        if WAY in EXCEPTIONS:
            raise EXCEPTIONS[WAY](f"rank {distributed.get_rank()} has had enough.")
        os.kill(os.getpid(), signal.Signals[WAY])
    return train_step(trainer, *args, **kwargs)


Trainer.train_step = train_step_or_end

if __name__ == "__main__":
    fairseq_cli.train.cli_main()
