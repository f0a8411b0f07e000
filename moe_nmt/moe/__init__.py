"""The mixture-of-experts core: pure PyTorch, no fairseq."""

from moe_nmt.moe.branches import BRANCHES
from moe_nmt.moe.dispatch import DISPATCHERS
from moe_nmt.moe.experts import EXPERTS
from moe_nmt.moe.layer import MoELayer
from moe_nmt.moe.losses import LOSSES
from moe_nmt.moe.recording import LayerRecord, RoutingStatistics, record_routing, summarize
from moe_nmt.moe.regularizers import REGULARIZERS
from moe_nmt.moe.routers import ROUTERS
from moe_nmt.moe.routing import (
    BranchGate,
    MoERecord,
    Routing,
    RoutingContext,
    drop_overflow,
    expert_load,
    keep,
    with_weight,
)

__all__ = [
    "BRANCHES",
    "DISPATCHERS",
    "EXPERTS",
    "LOSSES",
    "REGULARIZERS",
    "ROUTERS",
    "BranchGate",
    "LayerRecord",
    "MoELayer",
    "MoERecord",
    "Routing",
    "RoutingContext",
    "RoutingStatistics",
    "drop_overflow",
    "expert_load",
    "keep",
    "record_routing",
    "summarize",
    "with_weight",
]
