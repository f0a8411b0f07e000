"""All registered parts as a table: the `moe-nmt methods` command, and the table in the README."""

from __future__ import annotations

from moe_nmt.adapters import ADAPTERS
from moe_nmt.moe import BRANCHES, DISPATCHERS, EXPERTS, LOSSES, REGULARIZERS, ROUTERS
from moe_nmt.registry import Registry
from moe_nmt.schedules import SCHEDULES
from moe_nmt.surgery import SURGERY
from moe_nmt.training.freezing import FREEZING

FLAGS: dict[str, Registry] = {
    "--moe-router": ROUTERS,
    "--moe-experts": EXPERTS,
    "--moe-dispatch": DISPATCHERS,
    "--moe-regularizers": REGULARIZERS,
    "--moe-branch": BRANCHES,
    "--moe-losses": LOSSES,
    "--adapters": ADAPTERS,
    "--freezing": FREEZING,
    "`moe-nmt surgery`": SURGERY,
    "any value that may change": SCHEDULES,
}


def methods_table() -> str:
    """A Markdown table with a row for every part: where it goes, how it is written, what it does, where it is from."""
    rows = ["| goes into | part with its options | what it does | source |", "| --- | --- | --- | --- |"]
    for flag, registry in FLAGS.items():
        place = f"`{flag}`" if flag.startswith("--") else flag
        for entry in registry.entries().values():
            rows.append(f"| {place} | `{entry.signature}` | {entry.summary} | {entry.paper} |")
    return "\n".join(rows)
