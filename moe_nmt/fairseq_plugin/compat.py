"""What fairseq-fixed 0.12.3.1 needs on today's torch, and how its commands tell a user of a mistake.

fairseq is neither copied nor patched on disk. Everything here happens once, when the plugin is imported.
"""

from __future__ import annotations

import argparse
import collections
import errno
import functools
import logging
import pickle
import re
import sys
import typing
import warnings
import zipfile
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy
import omegaconf
import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils

from moe_nmt.errors import UserError
from moe_nmt.memory import keep_freed_memory
from moe_nmt.moe import kernels

logger = logging.getLogger(__name__)


class CheckpointError(UserError):
    """A checkpoint file that is missing, damaged, or holds what is not safe to load."""


def allow_checkpoint_globals() -> None:
    """Name the harmless types in fairseq's checkpoints to `torch.load`, which since 2.6 refuses all but tensors.

    `weights_only` stays on: a checkpoint whose pickle calls anything else is refused.
    """
    torch.serialization.add_safe_globals(
        [
            argparse.Namespace,
            distributed_utils._TensorPlaceholder,  # a broadcast of rank 0's checkpoint
            omegaconf.DictConfig,
            omegaconf.ListConfig,
            omegaconf.AnyNode,
            omegaconf.base.ContainerMetadata,
            omegaconf.base.Metadata,
            collections.defaultdict,
            dict,
            list,
            int,
            typing.Any,
            numpy.dtype,
            numpy.dtypes.Float64DType,
            numpy.dtypes.Float32DType,
            numpy.dtypes.Int64DType,
            (numpy._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
            numpy._core.multiarray.scalar,
        ]
    )


def mend_precision_flags(args: argparse.Namespace) -> None:
    """Make `--bf16` mean bfloat16 on any device (fairseq takes it for a TPU), and `--fp16` keep parameters apart.

    fairseq's one flat copy of them hides which are experts, and needs a GPU; a checkpoint would depend on it.
    """
    args.tpu = False
    args.fp16_no_flatten_grads = True


def explain_load_failures(load: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap fairseq's checkpoint loader so that a bad file is one sentence instead of a traceback."""

    @functools.wraps(load)
    def load_checkpoint_to_cpu(path: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return load(path, *args, **kwargs)
        except pickle.UnpicklingError as error:
            culprit = _refused_global(str(error))
            reason = (
                f"it would run '{culprit}' while being loaded" if culprit else "it is damaged or no checkpoint at all"
            )
            raise CheckpointError(
                f"the checkpoint {path} is refused because {reason}; use one that fairseq or moe-nmt wrote."
            ) from None
        except (
            EOFError,
            RuntimeError,
            zipfile.BadZipFile,
            KeyError,
            AttributeError,
            ValueError,
            TypeError,
            OSError,
        ) as e:
            if (
                isinstance(e, OSError) and e.errno != errno.EINVAL
            ):  # torch's word for the end of a file that comes too soon
                raise
            raise CheckpointError(
                f"the checkpoint {path} cannot be read ({type(e).__name__}); "
                "it is damaged or cut short: go back to an earlier one."
            ) from None

    return load_checkpoint_to_cpu


def _refused_global(message: str) -> str | None:
    """The name that torch's `weights_only` unpickler refused, out of its message."""
    for marker in ("Unsupported global: GLOBAL ", "Unsupported class ", "Trying to load unsupported GLOBAL "):
        if marker in message:
            return message.split(marker, 1)[1].split()[0]
    return None


def print_user_errors() -> None:
    """Make Python end a command with one sentence and status 2 when a `UserError` reaches the top."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        told = sentence(error)
        if told is None:
            previous(kind, error, trace)
            return
        print(f"moe_nmt: error: {told}", file=sys.stderr, flush=True)
        raise SystemExit(2)

    sys.excepthook = hook


def sentence(error: BaseException) -> str | None:
    """What to tell the user of an error, or None if it is not the user's."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, AssertionError) and "--reset-optimizer" in str(error):
        return str(error)
    if isinstance(error, ValueError) and "doesn't match the size of optimizer's group" in str(error):
        return (
            "the checkpoint was written by a training of other parameters, so its optimizer state does not fit; "
            "use --finetune-from-model, which starts anew, or add --reset-optimizer."
        )
    if isinstance(error, ValueError) and str(error).startswith("--finetune-from-model"):
        return f"{error}."
    if type(error) is Exception and str(error).startswith("Cannot load model parameters"):
        return _misfit(str(error).split()[6].rstrip(";"), error.__context__)
    missing = "Model file not found: "  # fairseq's own, before it comes to loading
    if isinstance(error, OSError) and str(error).startswith(missing):
        return (
            f"there is no checkpoint {str(error).removeprefix(missing)}; give the path of a file that training wrote."
        )
    return None


def _misfit(path: str, reason: BaseException | None) -> str:
    """What to tell the user of a checkpoint at `path` whose parameters are not those of the model."""
    if isinstance(reason, UserError):
        return f"{path}: {reason}"
    culprit = re.search(
        r"(Missing|Unexpected) key\(s\) in state_dict: \"(.*?)\"|(size mismatch) for (\S+):", str(reason)
    )
    found = " ".join(filter(None, culprit.groups())).lower() if culprit else str(reason)
    return (
        f"the checkpoint {path} does not fit the model ({found}, among others); "
        "give the architecture as in its training, which moe-nmt inspect shows."
    )


def silence_known_warnings() -> None:
    """Hide what torch says at every run of fairseq's own code and no user can change."""
    for message in (
        r"`torch.cuda.amp.autocast\(args...\)` is deprecated",
        r"`torch.cuda.amp.GradScaler\(args...\)` is deprecated",
        r"'pin_memory' argument is set as true but no accelerator is found",
        r"Support for mismatched key_padding_mask and attn_mask is deprecated",
        r"hydra.experimental.\w+\(\) is no longer experimental",
        r"\s*The version_base parameter is not specified",
        r"\s*The strict flag in the compose API is deprecated",
        r"\s*'config' is validated against ConfigStore schema",
        r"In 'config': Usage of deprecated keyword",
    ):
        warnings.filterwarnings("ignore", message)


def install() -> None:
    """Do all of the above, and what makes a process fast, once."""
    allow_checkpoint_globals()
    checkpoint_utils.load_checkpoint_to_cpu = explain_load_failures(checkpoint_utils.load_checkpoint_to_cpu)
    print_user_errors()
    silence_known_warnings()
    keep_freed_memory()
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every shape of a batch
    if not kernels.LOADED:
        logger.warning(
            "moe_nmt's compiled operators are missing or were built for another torch, so experts are slower on a CPU; "
            "build them again, in the folder of its setup.py: pip install --no-build-isolation ."
        )
