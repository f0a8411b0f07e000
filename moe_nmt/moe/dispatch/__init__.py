"""Dispatchers bring tokens to their experts and the results back. One file, one way.

Shape letters: N tokens (no padding), E experts, A assignments, D model width.
"""

from __future__ import annotations

from torch import Tensor

from moe_nmt.distributed.groups import ExpertGroup
from moe_nmt.moe.experts import Experts
from moe_nmt.moe.routing import Routing
from moe_nmt.registry import Registry


class Dispatcher:
    """The contract of every dispatcher; it has no parameters and is no module.

    `dispatcher(x_ND, routing, experts)` returns `y_ND`, dtype of `x_ND`: for every token the sum over its assignments
    of weight times the expert's output. A token without an assignment gets zeros.

    `group` are the ranks that share the experts; `experts` is then the part of this one (see `Experts.take_part`), and
    `routing` speaks of all of them. None: every rank has them all.
    """

    group: ExpertGroup | None = None

    def __call__(self, x_ND: Tensor, routing: Routing, experts: Experts) -> Tensor:
        raise NotImplementedError


DISPATCHERS: Registry[Dispatcher] = Registry("dispatcher", __name__)
