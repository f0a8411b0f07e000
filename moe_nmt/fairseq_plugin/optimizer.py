"""The optimizer `moe_adam`."""

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II
from torch import Tensor, nn

from moe_nmt.errors import UserError
from moe_nmt.training.expert_adam import ExpertAdam


@dataclass
class MoEAdamConfig(FairseqDataclass):
    """The options of the optimizer; those of fairseq's `adam` have its names."""

    adam_betas: Any = field(default="(0.9, 0.999)", metadata={"help": "betas for Adam optimizer"})
    adam_eps: float = field(default=1e-8, metadata={"help": "epsilon for Adam optimizer"})
    weight_decay: float = field(default=0.0, metadata={"help": "weight decay, decoupled from the gradient"})
    moe_adam_touched_only: bool = field(
        default=False,
        metadata={"help": "leave experts that got no gradient alone: their weights, moments and step counts"},
    )
    lr: list[float] = field(default=II("optimization.lr"))


@register_optimizer("moe_adam", dataclass=MoEAdamConfig)
class MoEAdam(FairseqOptimizer):
    """fairseq's `adam` computed by torch's fused kernels; see `ExpertAdam` for the formula.

    Factors on the gradients (of fairseq's normalization, and of clipping) are kept back and applied by the step itself,
    which spares passes over the memory of all gradients. `p.grad` shows the gradients without them until then.
    """

    def __init__(self, cfg: MoEAdamConfig, params: Iterable[nn.Parameter]):
        """Raises:
        UserError: for betas that are not a pair of numbers, and for `moe_adam_touched_only` without experts to see.
        """
        super().__init__(cfg)
        params = list(params)
        if cfg.moe_adam_touched_only and not any(hasattr(p, "num_experts") for p in params):
            raise UserError(
                "--moe-adam-touched-only finds no experts: the model has none, or --fp16 or --bf16 hides them behind "
                "float32 copies, which --memory-efficient-fp16 or --memory-efficient-bf16 avoids."
            )
        self._optimizer = ExpertAdam(params, touched_only=cfg.moe_adam_touched_only, **self.optimizer_config)
        self._factor: Tensor | float = 1.0

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """What of the command line goes before a checkpoint's values."""
        return {
            "lr": self.cfg.lr if isinstance(self.cfg.lr, float) else self.cfg.lr[0],
            "betas": _betas(self.cfg.adam_betas),
            "eps": self.cfg.adam_eps,
            "weight_decay": self.cfg.weight_decay,
        }

    @property
    def supports_memory_efficient_fp16(self) -> bool:
        return True

    @property
    def supports_flat_params(self) -> bool:
        return True

    def multiply_grads(self, c: Tensor | float) -> None:
        self._factor = self._factor * c

    def clip_grad_norm(self, max_norm: float, aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        norm: Tensor = self._factor * super().clip_grad_norm(0, aggregate_norm_fn)
        if max_norm > 0:
            self.multiply_grads((max_norm / (norm + 1e-6)).clamp(max=1))
        return norm

    def step(self, closure: Any = None, scale: Tensor | float = 1.0, groups: Any = None) -> None:
        self.optimizer.step(closure, scale=scale / self._factor)
        self._factor = 1.0

    def zero_grad(self) -> None:
        self._factor = 1.0
        super().zero_grad()


def _betas(text: Any) -> tuple[float, float]:
    try:
        first, second = ast.literal_eval(text) if isinstance(text, str) else text
        betas = float(first), float(second)
    except (ValueError, TypeError, SyntaxError):
        betas = (-1.0, -1.0)
    if not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"--adam-betas {text} is not a pair of numbers from 0 to below 1, as in '(0.9, 0.98)'.")
    return betas
