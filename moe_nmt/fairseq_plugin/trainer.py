"""fairseq's trainer, for models whose experts are spread over ranks too."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils, utils
from fairseq.trainer import Trainer
from omegaconf import open_dict
from torch import Tensor, nn

from moe_nmt.distributed.gradients import average_gradients, global_norm, is_local
from moe_nmt.distributed.groups import ExpertGroup, world_size
from moe_nmt.distributed.shards import together, write_folder
from moe_nmt.distributed.states import gather_parts, is_stacked, own_part
from moe_nmt.errors import UserError
from moe_nmt.fairseq_plugin.model import expert_group_of
from moe_nmt.fairseq_plugin.sharded import AVERAGED, OPTIMIZER, holder_of, put_back, tidy

logger = logging.getLogger(__name__)

OUT_OF_MEMORY = ("out of memory", "can't allocate memory")
"""What torch says on a GPU and on a CPU."""

DDP_BACKENDS = ("pytorch_ddp", "legacy_ddp")
OPTIMIZERS = ("adam", "moe_adam", "adamax", "nag", "sgd", "adagrad", "adadelta")
"""Those that move each number by its own gradient and state alone, so that a part of the experts moves as in all."""


class MoETrainer(Trainer):
    """fairseq's trainer, which knows that a rank may have experts that the others do not have.

    Where experts are not spread over ranks it is fairseq's own, but for the place in the data, which it finds again
    with another number of ranks. Where they are:

    - Their gradients are averaged over the replicas, and the norm of the gradients is that over all experts.
    - Checkpoints have all experts, their optimizer and averaged states, as one rank would write them; loading takes the
      own part. Gathering is done by all ranks, in `consolidate_optimizer`.
    - With `--moe-sharded-checkpoints` each rank writes its own experts there instead, also where all have them all.
    - A rank cannot leave an update alone (out of memory, an error), for the others wait for its experts: it ends.
    """

    def __init__(self, cfg: Any, task: Any, model: Any, criterion: Any, quantizer: Any = None):
        super().__init__(cfg, task, model, criterion, quantizer)
        self.group: ExpertGroup = expert_group_of(model)
        self.sharded = bool(getattr(cfg.task, "moe_sharded_checkpoints", False)) and bool(self._stacked())
        self._in_step = False
        self._whole: dict[str, Tensor | None] = {}
        self._folder: dict[str, str] = {}
        if self._apart:
            check_compatible(cfg, self.group)
        if self.group.size > 1:
            if not any(p.requires_grad and not is_local(p) for p in model.parameters()):
                raise UserError(
                    "--freezing leaves nothing to train but experts, which are spread over processes (--moe-dispatch), "
                    "and fairseq takes the norm of gradients from what all have; train the routers too."
                )
            with open_dict(cfg):
                cfg.checkpoint.load_checkpoint_on_all_dp_ranks = True
            model._ddp_params_and_buffers_to_ignore = self._expert_names()
            logger.info(
                f"experts are spread over {self.group.size} processes, with {self.group.replicas} replicas of each"
            )

    def train_step(self, samples: Any, raise_oom: bool = False) -> Any:
        """fairseq's, with the batches that only fill up an epoch first: it takes the last for all of an update."""
        return self._together(super().train_step, sorted(samples, key=bool), raise_oom)

    def valid_step(self, sample: Any, raise_oom: bool = False) -> Any:
        return self._together(super().valid_step, sample, raise_oom)

    def _together(self, step: Any, sample: Any, raise_oom: bool) -> Any:
        """Make a step that no rank can leave alone."""
        self._in_step = True
        self._whole, self._folder = {}, {}
        try:
            return step(sample, raise_oom or self.group.size > 1)
        except RuntimeError as error:
            if self.group.size == 1 or not any(words in str(error) for words in OUT_OF_MEMORY):
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

    @property
    def _apart(self) -> bool:
        """Whether rank 0 cannot write a checkpoint alone."""
        return self.group.size > 1 or self.sharded

    def consolidate_optimizer(self) -> None:
        """Bring all experts to rank 0, or to their own files, which every rank takes part in; not amid a step, where
        only some would."""
        super().consolidate_optimizer()
        if self._apart and not self._in_step:
            state = super().state_dict()
            parts = {name: holder[key] for name, holder, key, _ in self._stacked_in(state)}
            if self.sharded:
                save_dir = Path(self.cfg.checkpoint.save_dir)
                together(lambda: tidy(save_dir) if self.data_parallel_rank == 0 else None)
                parts = utils.move_to_cpu(parts) if self.data_parallel_rank < self.group.size else {}
                self._folder = write_folder(parts, save_dir, self.get_num_updates(), self.group)
                self._whole = dict.fromkeys(parts)
            else:
                self._whole = {name: gather_parts(part, self.group) for name, part in parts.items()}

    def state_dict(self) -> dict[str, Any]:
        state = detached(super().state_dict())
        for name, whole in self._whole.items():
            holder, key = holder_of(state, name)
            holder[key] = whole
        return state | {"experts": self._folder} if self._folder else state

    def save_checkpoint(self, filename: str, extra_state: dict[str, Any]) -> Any:
        """fairseq's, but for `crash.pt`, which would need the experts of ranks that do not know of the crash."""
        if self._apart and self._in_step:
            logger.warning(f"{filename} is not written, because experts are spread over processes or files")
            return None
        return super().save_checkpoint(filename, extra_state)

    def load_checkpoint(self, filename: str, reset_optimizer: bool = False, *args: Any, **kwargs: Any) -> Any:
        """fairseq's, of a file written by any number of ranks, its experts in it or beside it."""
        load = checkpoint_utils.load_checkpoint_to_cpu
        wanted = ["model", *(AVERAGED if self.cfg.ema.store_ema else ()), *(() if reset_optimizer else (OPTIMIZER,))]

        @functools.wraps(load.without_experts)
        def load_own(*args: Any, **kwargs: Any) -> dict[str, Any]:
            state: dict[str, Any] = load.without_experts(*args, **kwargs)
            find_place_in_data(state)
            apart = "experts" in state
            put_back(state, Path(filename), wanted, self.group)
            if self.group.size > 1:
                self._take_own(state, 1 if apart else self.group.size)
            return state

        checkpoint_utils.load_checkpoint_to_cpu = load_own
        try:
            return super().load_checkpoint(filename, reset_optimizer, *args, **kwargs)
        finally:
            checkpoint_utils.load_checkpoint_to_cpu = load

    def _take_own(self, state: dict[str, Any], parts: int) -> None:
        """Keep of the experts in a checkpoint, which has so many equal parts of them, the own part."""
        for name, holder, key, parameter in list(self._stacked_in(state, parts)):
            found, wanted = (count * self.group.size // parts for count in (len(holder[key]), parts * len(parameter)))
            if found != wanted:
                raise UserError(
                    f"the checkpoint has {found} experts in {name.partition('/')[2]} and the model {wanted}; give "
                    "--moe-experts as in its training, which moe-nmt inspect shows."
                )
            if parts > 1:
                holder[key] = own_part(holder[key], self.group)

    def _expert_names(self) -> list[str]:
        return [name for name, parameter in self._model.named_parameters() if is_local(parameter)]

    def _stacked(self) -> dict[str, nn.Parameter]:
        """The parameters that have one slice for each expert of this rank, by name."""
        return {name: p for name, p in self._model.named_parameters() if hasattr(p, "num_experts")}

    def _stacked_in(
        self, state: dict[str, Any], parts: int = 1
    ) -> Iterator[tuple[str, dict[Any, Any], Any, nn.Parameter]]:
        """Each tensor of experts in a checkpoint, in the same order on all ranks: its name, the dictionary that it is
        in, its key there, and the parameter that it belongs to. The checkpoint has so many parts of the experts."""
        stacked, extra = self._stacked(), state["extra_state"]
        for part, tensors in {"model": state["model"], **{part: extra.get(part, {}) for part in AVERAGED}}.items():
            yield from ((f"{part}/{name}", tensors, name, p) for name, p in stacked.items() if name in tensors)
        trained = [p for p in (*self._model.parameters(), *self._criterion.parameters()) if p.requires_grad]
        entries = (state.get(OPTIMIZER) or {}).get("state", {})
        for number, parameter in enumerate(trained):
            if hasattr(parameter, "num_experts") and number in entries:
                entry = entries[number]
                for key in sorted(key for key in entry if is_stacked(entry[key], parts * len(parameter))):
                    yield f"{OPTIMIZER}/{number}/{key}", entry, key, parameter


def detached(state: dict[Any, Any]) -> dict[Any, Any]:
    """The same tensors in other dictionaries, for those of a state are the optimizer's own."""
    return {key: detached(value) if isinstance(value, dict) else value for key, value in state.items()}


def check_compatible(cfg: Any, group: ExpertGroup) -> None:
    """Raise a `UserError` for what does not go together with experts that are spread over ranks, or written apart."""
    what = "experts that are spread over processes (--moe-dispatch)" if group.size > 1 else "--moe-sharded-checkpoints"
    optimizer, training = getattr(cfg.optimizer, "_name", None), cfg.distributed_training
    if group.size > 1 and optimizer not in OPTIMIZERS:
        raise UserError(f"--optimizer {optimizer} does not go with {what}; choose one of {', '.join(OPTIMIZERS)}.")
    if training.ddp_backend not in (*DDP_BACKENDS, "c10d", "no_c10d"):
        raise UserError(
            f"--ddp-backend {training.ddp_backend} does not go with {what}; choose one of {', '.join(DDP_BACKENDS)}."
        )
    for flag, given in (
        ("--use-bmuf", cfg.optimization.use_bmuf),
        ("--zero-sharding os", training.zero_sharding == "os"),
        ("--pipeline-model-parallel", training.pipeline_model_parallel),
        ("--fp16-adam-stats", getattr(cfg.optimizer, "fp16_adam_stats", False)),
        ("--write-checkpoints-asynchronously", cfg.checkpoint.write_checkpoints_asynchronously),
    ):
        if given:
            raise UserError(f"{flag} does not go with {what}; leave it out.")


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
