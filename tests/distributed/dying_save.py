"""`python dying_save.py N ARGUMENTS` is `fairseq-train ARGUMENTS`, killed amid its N-th write of a checkpoint."""

import os
import signal
import sys

import fairseq_cli.train
import torch


def kill_in_save(number: int) -> None:
    save, before = torch.save, iter(range(number - 1))

    def killed(data, file):
        if next(before, None) is None:
            file.write(b"PK half of a checkpoint")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return save(data, file)

    torch.save = killed


if __name__ == "__main__":
    kill_in_save(int(sys.argv.pop(1)))
    fairseq_cli.train.cli_main()
