"""What a training step of a sparse Transformer takes on N devices, on paper: seconds, bytes sent, and bytes held.

Letters: d model width, f inner width, F that of an expert, E experts of a layer, k of them per token, V vocabulary,
n tokens of a rank and batch (on each side), A = n k rows for experts; N ranks, G of an expert group, r of it in a node,
C chunks; b bytes of a number.

Every formula stands in the docstring of what computes it. They leave out: imbalance beyond `Plan.balance`, traffic of
others, and the overlap of the dense layers' gradients with the backward pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from examples.scaling.shapes import PRECISIONS, Machine, Model, Plan
from moe_nmt.errors import UserError


class Sent(NamedTuple):
    """Something of a rank by where it goes: other ranks of the node, and other nodes."""

    within: float
    across: float


@dataclass(frozen=True)
class Prediction:
    """Seconds of an update and bytes of a device by what they are for; `sent`: bytes that a rank's dispatchers send."""

    seconds: dict[str, float]
    memory: dict[str, float]
    sent: Sent
    flops_utilization: float
    """Model FLOP/s by peak: recomputation does not count."""

    @property
    def step(self) -> float:
        return sum(self.seconds.values())

    @property
    def held(self) -> float:
        return sum(self.memory.values())


def peers(plan: Plan) -> Sent:
    """How many messages of an exchange go where: to all ranks of the group; by node, to one of each node, then on."""
    r, g = plan.group_per_node, plan.expert_ranks
    return Sent(r - 1, g // r - 1 if plan.by_node else g - r)


def shares(plan: Plan) -> Sent:
    """The part of evenly routed rows that is sent: (r - 1) / G and (G - r) / G, r ranks of the group in a node.

    By node as much goes across, and (r - 1) / r of all rows within, since those that came from other nodes go on.
    """
    r, g = plan.group_per_node, plan.expert_ranks
    return Sent((r - 1) / (r if plan.by_node else g), (g - r) / g)


def bytes_sent(model: Model, plan: Plan) -> Sent:
    """Of the dispatchers of a rank in an update: rows four times a layer, forth and back in both passes, and counts.

    Rows are A d b bytes. Counts are int64, one for each chunk and expert of the other rank (of the other node, by
    node). Recomputation repeats what the forward pass sends.
    """
    if plan.expert_ranks == 1:
        return Sent(0, 0)
    forwards = 2 if plan.recompute else 1
    rows = 2 * (forwards + 1) * plan.tokens * model.k * model.dim * PRECISIONS[plan.precision].number
    counts = forwards * 8 * plan.chunks * model.experts // plan.expert_ranks
    there, part = peers(plan), shares(plan)
    widths = Sent(counts, counts * (plan.group_per_node if plan.by_node else 1))
    calls = model.sparse_layers * plan.update_freq
    return Sent(*(calls * (rows * p + w * m) for p, w, m in zip(part, widths, there, strict=True)))


def exchange_seconds(machine: Machine, plan: Plan, sent: float) -> Sent:
    """One all-to-all of `sent` bytes of rows: a latency a message + bytes / bandwidth, within, then across.

    Pairwise exchange, (G - 1) latencies (Thakur et al. 2005); by node fewer (DeepSpeed-MoE, Rajbhandari et al. 2022).
    """
    links = (machine.within, machine.across)
    return Sent(
        *(
            count * machine.latency(link, plan.ranks) + sent * part / link.bandwidth
            for count, part, link in zip(peers(plan), shares(plan), links, strict=True)
        )
    )


def pipeline_seconds(exchange: float, compute: float, chunks: int, overlaps: bool) -> float:
    """Of C chunks: out, computed, back. Without overlap C (2x + c); with it x + c + (C - 1) max(c, 2x) + x.

    While a chunk is computed, the next one comes and the one before it returns. `exchange` and `compute` are those of
    one chunk.
    """
    if not overlaps:
        return chunks * (2 * exchange + compute)
    return 2 * exchange + compute + (chunks - 1) * max(compute, 2 * exchange)


def dispatch_seconds(machine: Machine, plan: Plan, rows: float, compute: float) -> Sent:
    """What travel adds to the `compute` seconds of a sparse layer's forward pass: `rows` bytes, forth and back.

    In the backward pass, which computes twice as long, as much travels; counts only in the forward pass.
    """
    if plan.expert_ranks == 1:
        return Sent(0, 0)
    exchange = exchange_seconds(machine, plan, rows / plan.chunks)
    counts = exchange_seconds(machine, plan, 0)
    forwards = 2 if plan.recompute else 1
    part = compute / plan.chunks
    once = [pipeline_seconds(sum(exchange), part * n, plan.chunks, machine.overlaps) - compute * n for n in (1, 2)]
    added = forwards * once[0] + once[1]
    return Sent(*(added * x / sum(exchange) + forwards * c for x, c in zip(exchange, counts, strict=True)))


def all_reduce_seconds(machine: Machine, size: float, ranks: int, per_node: int, everyone: int = 0) -> float:
    """A ring: 2 (N - 1) / N bytes by the bandwidth, and a latency for each of 2 (N - 1) steps.

    As NCCL's own tuning model has it (src/graph/tuning.cc): 2 (nodes - 1) of the steps go across nodes. There the rings
    use the network cards of all members: the bandwidth is that of a node's together, and no more than within.
    `everyone`: the number of ranks that do the same at the same time, in groups of N; 0: N.
    """
    nodes = ranks // per_node
    bandwidth = machine.within.reduce_bandwidth
    if nodes > 1:
        bandwidth = min(bandwidth if per_node > 1 else math.inf, per_node * machine.across.reduce_bandwidth)
    within, across = (machine.latency(link, everyone or ranks) for link in (machine.within, machine.across))
    latency = 2 * (ranks - nodes) * within + 2 * (nodes - 1) * across
    return latency + 2 * (ranks - 1) / ranks * size / bandwidth


def layer_memory(model: Model, plan: Plan) -> tuple[float, float, float]:
    """What the backward pass reads of an attention, of a dense block and of a layer's experts.

    As scripts/bench_memory.py counts it: attention b 6nd + 4nH + nd; dense block b (2nd + nf) + nd; experts
    b (2nd + A (F + 2d)) + 8nE + A (20 + d).
    """
    n, d, b = plan.tokens, model.dim, PRECISIONS[plan.precision].number
    attention = b * 6 * n * d + 4 * n * model.heads + n * d
    dense = b * (2 * n * d + n * model.ffn_dim) + n * d
    rows = n * model.k * plan.balance
    sparse = b * (2 * n * d + rows * (model.expert_dim + 2 * d)) + 8 * n * model.experts + rows * (20 + d)
    return attention, dense, sparse


def memory(model: Model, plan: Plan) -> dict[str, float]:
    """Bytes of a device. With recomputation only the inputs of layers are kept, and one layer's activations at a time.

    Logits: log-probabilities and their gradient in float32, and at 16 bit the gradient once more.
    """
    n, precision = plan.tokens, PRECISIONS[plan.precision]
    parameters = model.dense_parameters + model.expert_parameters / plan.expert_ranks
    attention, dense, sparse = layer_memory(model, plan)
    activations = model.attentions * attention + (model.layers - model.sparse_layers) * dense
    activations += model.sparse_layers * sparse
    if plan.recompute:
        largest = 2 * attention + (max(dense, sparse) if model.sparse_layers else dense)
        activations = model.layers * precision.number * n * model.dim + largest
    return {
        "weights": parameters * precision.weight,
        "gradients": parameters * precision.gradient,
        "optimizer": parameters * precision.optimizer,
        "activations": activations + 2 * precision.number * n * model.dim,
        "logits": n * model.vocabulary * (8 + (precision.number if precision.number < 4 else 0)),
    }


def predict(model: Model, plan: Plan, machine: Machine) -> Prediction:
    """The time of an update and the memory of a device.

    Compute: FLOPs of three passes (four with recomputation, the output's three) by utilization times peak; experts no
    faster than their weights are read and their gradients written. Gradients travel once an update. Adam moves
    `Precision.moved` bytes per parameter.
    """
    if model.experts % plan.expert_ranks:
        raise UserError(f"{plan.expert_ranks} ranks cannot share {model.experts} experts; take a divisor of them.")
    precision, share = PRECISIONS[plan.precision], machine.share(plan.ranks)
    layers, output = model.dense_flops(plan.tokens, plan.sentence)
    dense = (plan.passes * layers + 3 * output) / (machine.flops * machine.utilization * share)
    own = model.expert_parameters / plan.expert_ranks
    bandwidth = machine.memory_bandwidth * share
    reading = own / max(model.sparse_layers, 1) * precision.weight / bandwidth
    flops = model.expert_flops(plan.tokens) * plan.balance
    expert = max(flops / (machine.flops * machine.expert_utilization * share), reading)
    rows = plan.tokens * model.k * model.dim * precision.number * plan.balance
    travel = dispatch_seconds(machine, plan, rows, expert)
    calls = model.sparse_layers * plan.update_freq
    per_node, replicas = min(plan.ranks, plan.ranks_per_node), plan.ranks // plan.expert_ranks
    replicas_per_node = min(replicas, max(1, per_node // plan.expert_ranks))
    dense_gradients, own_gradients = (count * precision.gradient for count in (model.dense_parameters, own))
    seconds = {
        "dense layers": plan.update_freq * dense,
        "experts": calls * plan.passes * expert,
        "dispatch within node": calls * travel.within,
        "dispatch across nodes": calls * travel.across,
        "gradients of dense layers": all_reduce_seconds(machine, dense_gradients, plan.ranks, per_node),
        "gradients of replicas": all_reduce_seconds(machine, own_gradients, replicas, replicas_per_node, plan.ranks),
        "optimizer": (model.dense_parameters + own) * precision.moved / bandwidth,
    }
    model_flops = 3 * plan.update_freq * (layers + output + model.sparse_layers * model.expert_flops(plan.tokens))
    used = model_flops / sum(seconds.values()) / (machine.flops * share)
    return Prediction(seconds, memory(model, plan), bytes_sent(model, plan), used)
