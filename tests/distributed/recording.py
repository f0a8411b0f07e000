"""`python recording.py FILE ARGUMENTS` is `fairseq-train ARGUMENTS`; FILE gets loss and norm of every update.

Rank 0 writes a JSON line for each, in full precision: fairseq's own log rounds.
"""

import json
import os
import sys

import fairseq_cli.train
from fairseq.trainer import Trainer


def record_to(path: str) -> None:
    """Write what is logged of every update of this process."""
    reduce_and_log_stats = Trainer._reduce_and_log_stats

    def recorded(trainer, logging_outputs, sample_size, grad_norm=None):
        if grad_norm is not None:
            loss = sum(float(log["loss"]) for log in logging_outputs) / float(sample_size)
            with open(path, "a") as file:
                file.write(json.dumps({"loss": loss, "gnorm": float(grad_norm)}) + "\n")
        return reduce_and_log_stats(trainer, logging_outputs, sample_size, grad_norm)

    Trainer._reduce_and_log_stats = recorded


if __name__ == "__main__":
    file = sys.argv.pop(1)
    if os.environ.get("RANK", "0") == "0":
        record_to(file)
    fairseq_cli.train.cli_main()
