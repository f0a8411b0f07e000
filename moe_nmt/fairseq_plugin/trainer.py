"""fairseq's trainer, for models whose experts are spread over ranks too."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Iterator
from typing import Any

from fairseq import checkpoint_utils
from fairseq.trainer import Trainer
from omegaconf import open_dict
from torch import Tensor

from moe_nmt.distributed.gradients import average_gradients, global_norm, is_local
from moe_nmt.distributed.groups import ExpertGroup, world_size
from moe_nmt.distributed.states import gather_parts, own_part
from moe_nmt.errors import UserError
from moe_nmt.fairseq_plugin.model import expert_group_of

logger = logging.getLogger(__name__)

DDP_BACKENDS = ("pytorch_ddp", "legacy_ddp")


class MoETrainer(Trainer):
    """fairseq's trainer, which knows that a rank may have experts that the others do not have.

    Where experts are not spread over ranks it is fairseq's own, but for the place in the data, which it finds again
    with another number of ranks. Where they are:

    - Their gradients are averaged over the replicas, and the norm of the gradients is that over all experts.
    - Checkpoints have all experts, their optimizer and averaged states, as one rank would write them; loading takes the
      own part. Gathering is done by all ranks, in `consolidate_optimizer`.
    - A rank cannot leave an update alone (out of memory, an error), for the others wait for its experts: it ends.
    """

    def __init__(self, cfg: Any, task: Any, model: Any, criterion: Any, quantizer: Any = None):
        super().__init__(cfg, task, model, criterion, quantizer)
        self.group: ExpertGroup = expert_group_of(model)
        self._in_step = False
        self._whole: dict[tuple[str | int, ...], Tensor] = {}
        if self.group.size > 1:
            check_compatible(cfg)
            with open_dict(cfg):
                cfg.checkpoint.load_checkpoint_on_all_dp_ranks = True
            model._ddp_params_and_buffers_to_ignore = self._expert_names()
            logger.info(
                f"experts are spread over {self.group.size} processes, with {self.group.replicas} replicas of each"
            )

    def train_step(self, samples: Any, raise_oom: bool = False) -> Any:
        return self._together(super().train_step, samples, raise_oom)

    def valid_step(self, sample: Any, raise_oom: bool = False) -> Any:
        return self._together(super().valid_step, sample, raise_oom)

    def _together(self, step: Any, sample: Any, raise_oom: bool) -> Any:
        """Make a step that no rank can leave alone."""
        if self.group.size == 1:
            return step(sample, raise_oom)
        self._in_step = True
        try:
            return step(sample, raise_oom=True)
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            raise UserError(
                f"process {self.data_parallel_rank} ran out of memory, and the others cannot go on without its "
                "experts: lower --max-tokens (and raise --update-freq), or add --checkpoint-activations; the same "
                "command goes on from the last checkpoint."
            ) from None
        finally:
            self._in_step = False

    def clip_grad_norm(self, clip_norm: float) -> Any:
        """Average the gradients of the experts, which fairseq leaves alone, then clip by the norm of all."""
        if self.group.size == 1:
            return super().clip_grad_norm(clip_norm)
        average_gradients(filter(is_local, self._model.parameters()), self.group)

        def norm_of_all(norm: Tensor) -> Tensor:
            local = (p.grad for p in self.optimizer.params if is_local(p) and p.grad is not None)
            return global_norm(norm, local, self.group)

        return self.optimizer.clip_grad_norm(clip_norm, aggregate_norm_fn=norm_of_all)

    def consolidate_optimizer(self) -> None:
        """Bring all experts to rank 0, which every rank takes part in; not amid a step, where only some would."""
        super().consolidate_optimizer()
        if self.group.size > 1 and not self._in_step:
            state = super().state_dict()
            gathered = {place: gather_parts(holder[key], self.group) for place, holder, key in self._stacked_in(state)}
            self._whole = {place: whole for place, whole in gathered.items() if whole is not None}

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = super().state_dict()
        if self.group.size > 1:
            for place, holder, key in list(self._stacked_in(state)):
                holder[key] = self._whole[place]
        return state

    def save_checkpoint(self, filename: str, extra_state: dict[str, Any]) -> Any:
        """fairseq's, but for `crash.pt`, which would need the experts of ranks that do not know of the crash."""
        if self._in_step:
            logger.warning(f"{filename} is not written, because experts are spread over processes")
            return None
        saved = super().save_checkpoint(filename, extra_state)
        self._whole = {}
        return saved

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> Any:
        """fairseq's, of a file written by any number of ranks."""
        load = checkpoint_utils.load_checkpoint_to_cpu

        @functools.wraps(load)
        def load_own(*args: Any, **kwargs: Any) -> dict[str, Any]:
            state: dict[str, Any] = load(*args, **kwargs)
            find_place_in_data(state)
            if self.group.size > 1:
                for _, holder, key in list(self._stacked_in(state)):
                    holder[key] = own_part(holder[key], self.group)
            return state

        checkpoint_utils.load_checkpoint_to_cpu = load_own
        try:
            return super().load_checkpoint(filename, *args, **kwargs)
        finally:
            checkpoint_utils.load_checkpoint_to_cpu = load

    def _expert_names(self) -> list[str]:
        return [name for name, parameter in self._model.named_parameters() if is_local(parameter)]

    def _stacked_in(self, state: dict[str, Any]) -> Iterator[tuple[tuple[str | int, ...], dict[Any, Any], Any]]:
        """Each stacked tensor of experts in a checkpoint, in the same order on all ranks: where it is, in which
        dictionary, under which key."""
        names = self._expert_names()
        extra = state["extra_state"]
        averaged = {name: extra[name] for name in ("ema", "ema_fp32_params") if name in extra}
        for part, tensors in ({"model": state["model"]} | averaged).items():
            yield from (((part, name), tensors, name) for name in names if name in tensors)
        trained = [p for p in (*self._model.parameters(), *self._criterion.parameters()) if p.requires_grad]
        entries = (state.get("last_optimizer_state") or {}).get("state", {})
        for index, parameter in enumerate(trained):
            if is_local(parameter) and index in entries:
                entry = entries[index]
                for key in sorted(entry):
                    if isinstance(entry[key], Tensor) and entry[key].dim():
                        yield ("last_optimizer_state", index, key), entry, key


def check_compatible(cfg: Any) -> None:
    """Raise a `UserError` for what does not go together with experts that are spread over ranks."""
    backend = cfg.distributed_training.ddp_backend
    if backend not in (*DDP_BACKENDS, "c10d", "no_c10d"):
        raise UserError(f"--ddp-backend {backend} cannot spread experts; choose one of {', '.join(DDP_BACKENDS)}.")
    for flag, given in (
        ("--use-bmuf", cfg.optimization.use_bmuf),
        ("--zero-sharding os", cfg.distributed_training.zero_sharding == "os"),
        ("--pipeline-model-parallel", cfg.distributed_training.pipeline_model_parallel),
    ):
        if given:
            raise UserError(f"{flag} cannot be used where experts are spread over processes (--moe-dispatch).")


def find_place_in_data(state: dict[str, Any]) -> None:
    """Count the batches of the epoch that were trained on by the number of ranks that there are now."""
    iterator = state["extra_state"]["train_iterator"]
    before = state["cfg"]["distributed_training"]["distributed_world_size"] if state.get("cfg") else world_size()
    batches = iterator.get("iterations_in_epoch", 0) * before
    if before != world_size() and batches:
        iterator["iterations_in_epoch"] = batches // world_size()
        if batches % world_size():
            logger.warning(f"{batches % world_size()} batches of the epoch will be trained on twice")


def use_trainer() -> None:
    """Make fairseq-train use this trainer, if that is the command."""
    command = sys.modules.get("fairseq_cli.train")
    if command is not None:
        command.Trainer = MoETrainer  # type: ignore[attr-defined]
