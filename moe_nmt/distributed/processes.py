"""How processes of a training meet, and how one ends."""

from __future__ import annotations

import atexit
import os
import socket
import sys
from typing import NoReturn

from torch import distributed


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


def end_process(status: int = 0) -> NoReturn:
    """End this process, one of several ranks, without taking the interpreter down piece by piece: threads of a process
    group may outlive what they need then, and abort it at its very end.

    With status 0 the process group, if there is one, is left and what is due at the exit (`atexit`) is done; else
    nothing is waited for, as other ranks may be gone, or wait for this one.
    """
    if status == 0:
        if distributed.is_initialized():
            distributed.destroy_process_group()
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
