"""The criterion `moe_label_smoothed_cross_entropy`: the translation loss plus weighted losses on the routing."""

import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq import metrics
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from omegaconf import II
from torch import Tensor

from moe_nmt.errors import UserError
from moe_nmt.moe import LOSSES, LayerRecord, MoELayer, record_routing, summarize
from moe_nmt.moe.losses import without_tokens
from moe_nmt.registry import parse_list
from moe_nmt.schedules import at_step
from moe_nmt.training.label_smoothing import label_smoothed_cross_entropy

logger = logging.getLogger(__name__)

REPORTS_PER_LOG = 10
"""How many updates of a log interval at least report on routing and directions, if it has as many."""


@dataclass
class MoELabelSmoothedCrossEntropyCriterionConfig(LabelSmoothedCrossEntropyCriterionConfig):
    """The options of the criterion."""

    moe_losses: str = field(
        default="[load_balancing(weight=0.01)]",
        metadata={
            "help": "list of losses on the routing, for example [load_balancing(weight=0.01), z_loss(weight=0.001)]"
        },
    )
    moe_log_per_layer: bool = field(
        default=False,
        metadata={
            "help": "log routing statistics of every layer, not only their mean over the layers, and each expert's load"
        },
    )
    log_interval: int = II("common.log_interval")


@register_criterion("moe_label_smoothed_cross_entropy", dataclass=MoELabelSmoothedCrossEntropyCriterionConfig)
class MoELabelSmoothedCrossEntropyCriterion(LabelSmoothedCrossEntropyCriterion):
    """Label-smoothed cross entropy + sum over routing losses of weight * loss, per target token.

    Logs, beside fairseq's figures: each routing loss, the figures of `RoutingSummary` and the mean gate of branches
    that have one, averaged over layers and batches, and the loss of every direction. In training only `REPORTS_PER_LOG`
    of the updates between two lines of the log report on these; the others do not compute what only a log wants.
    """

    def __init__(
        self,
        task: Any,
        sentence_avg: bool,
        label_smoothing: float,
        ignore_prefix_size: int = 0,
        report_accuracy: bool = False,
        moe_losses: str = "",
        moe_log_per_layer: bool = False,
        log_interval: int = 1,
    ):
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)
        specs = parse_list(moe_losses)
        self.routing_losses = {spec.name: LOSSES.build(spec) for spec in specs}
        if len(self.routing_losses) < len(specs):
            raise UserError(f"--moe-losses {moe_losses} has a loss twice; give each once, with its whole weight.")
        self.log_per_layer = moe_log_per_layer
        self.report_interval = max(1, log_interval // REPORTS_PER_LOG)
        self.num_updates = 0
        self.batches_sent = 0
        self.num_directions = len(getattr(task, "lang_pairs", ()))
        self.direction_index = task.direction_index() if hasattr(task, "direction_index") else None

    def set_num_updates(self, num_updates: int) -> None:
        """The number of updates done, for weights that are schedules."""
        self.num_updates = num_updates

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Tensor, int, dict[str, Any]]:
        """Returns the loss summed over the batch, the sample size that fairseq divides it by, and what to log.

        A sample with `ignored`, by which fairseq fills up the last update of an epoch, adds no token to the losses on
        the routing, but takes part in what ranks compute of them together.
        """
        with record_routing(unwrapped(model)) as records:
            net_output = model(**sample["net_input"])
        logits = net_output[0][:, self.ignore_prefix_size :]
        target = model.get_targets(sample, net_output)[:, self.ignore_prefix_size :].flatten()
        loss, nll = label_smoothed_cross_entropy(logits.flatten(0, 1), target, self.eps, self.padding_idx)
        loss = loss.sum()
        sample_size = sample["target"].size(0) if self.sentence_avg else sample["ntokens"]
        log: dict[str, Any] = {
            "nll_loss": nll.data.sum(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": sample_size,
        }
        self.batches_sent += 1
        reports = not model.training or (self.num_updates + 1) % self.report_interval == 0
        if records:
            weights = {name: at_step(part.weight, self.num_updates) for name, part in self.routing_losses.items()}
            wanted = [name for name, weight in weights.items() if weight or reports]
            ignored = sample.get("ignored", False)
            counted = [LayerRecord(layer, without_tokens(record)) for layer, record in records] if ignored else records
            routing_losses = self.compute_routing_losses(counted, wanted)
            for name, value in routing_losses.items():
                if weights[name]:
                    loss = loss + sample_size * weights[name] * value.to(loss.dtype)
            if reports:
                log |= self.routing_log(records, routing_losses) | self.traffic_log(unwrapped(model))
        if reports and self.direction_index is not None:
            log |= self.direction_log(nll.data, target, sample)
        if self.report_accuracy:
            n_correct, total = self.compute_accuracy(model, net_output, sample)
            log |= {"n_correct": n_correct.data, "total": total.data}
        log["loss"] = loss.data
        return loss, sample_size, log

    def compute_routing_losses(self, records: list[LayerRecord], names: list[str]) -> dict[str, Tensor]:
        """The routing losses of these names, of a batch, unweighted."""
        return {name: self.routing_losses[name]([record for _, record in records]) for name in names}

    def routing_log(self, records: list[LayerRecord], routing_losses: dict[str, Tensor]) -> dict[str, Tensor | int]:
        """Sums over batches, for `reduce_metrics` to divide by `moe_batches`; loads are float [E], all else scalar."""
        log: dict[str, Tensor | int] = {"moe_batches": 1}
        log |= {f"moe_{name}_loss": value.data for name, value in routing_losses.items()}
        summaries = {layer: summarize(record.routing) for layer, record in records}
        for name in ("entropy", "overflow", "balance", "max_load", "unused"):
            values = {layer: getattr(summary, name) for layer, summary in summaries.items()}
            log[f"moe_{name}"] = torch.stack([*values.values()]).mean()
            if self.log_per_layer:
                log |= {f"moe_{name}_{layer}": value for layer, value in values.items()}
        if self.log_per_layer:
            log |= {f"moe_load/{layer}": summary.share_E for layer, summary in summaries.items()}
        gates = {layer: record.gate.gate_N.detach().mean() for layer, record in records if record.gate is not None}
        if gates:
            if "gate_budget" not in self.routing_losses:
                warn_of_gates_without_budget()
            log["moe_gate"] = torch.stack([*gates.values()]).mean()
            if self.log_per_layer:
                log |= {f"moe_gate_{layer}": gate for layer, gate in gates.items()}
        return log

    def traffic_log(self, model: Any) -> dict[str, float]:
        """Bytes that this rank sent per batch since the last report, by all layers: to its node, and to others."""
        dispatchers = {name: m.dispatcher for name, m in model.named_modules() if isinstance(m, MoELayer)}
        batches, self.batches_sent = self.batches_sent, 0
        log: dict[str, float] = {}
        for layer, dispatcher in dispatchers.items():
            if dispatcher.group is not None and dispatcher.group.size > 1:
                for where, sent in dispatcher.traffic.take("log")._asdict().items():
                    name = f"moe_bytes_{where}"
                    log[name] = log.get(name, 0.0) + sent / batches
                    if self.log_per_layer:
                        log[f"{name}_{layer}"] = sent / batches
        return log

    def direction_log(self, nll: Tensor, target: Tensor, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Negative log-likelihood and number of target tokens of each direction: float [directions] each."""
        assert self.direction_index is not None
        batch = sample["target"].shape[0]
        table = self.direction_index.to(target.device)
        direction = table[sample["net_input"]["source_language"], sample["net_input"]["target_language"]]
        real = target.ne(self.padding_idx).view(batch, -1).sum(1)
        zeros = torch.zeros(self.num_directions, dtype=torch.float32, device=target.device)
        return {
            "direction_nll": zeros.index_add(0, direction, nll.view(batch, -1).sum(1).float()),
            "direction_tokens": zeros.index_add(0, direction, real.float()),
        }

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """fairseq's metrics and the routing's."""
        super().reduce_metrics(logging_outputs)
        batches = sum(log.get("moe_batches", 0) for log in logging_outputs)
        for key in _routing_keys(logging_outputs):
            mean = sum(log.get(key, 0) for log in logging_outputs) / batches
            for name, value in _scalars(key, mean):
                metrics.log_scalar(name, value, batches, round=3)


def unwrapped(model: Any) -> Any:
    """The model itself, out of what fairseq wraps it in for data parallelism."""
    while hasattr(model, "module"):
        model = model.module
    return model


@functools.cache
def warn_of_gates_without_budget() -> None:
    """Say once in a process that nothing limits the gates."""
    logger.warning("the branch conditional is trained without its budget: add gate_budget to --moe-losses")


def _routing_keys(logging_outputs: list[dict[str, Any]]) -> Iterator[str]:
    keys = dict.fromkeys(key for log in logging_outputs for key in log if key.startswith("moe_"))
    return (key for key in keys if key != "moe_batches")


def _scalars(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A figure under its name, or those of a vector under the name and their place."""
    if torch.is_tensor(value) and value.dim():
        yield from ((f"{key}/{place}", element) for place, element in enumerate(value.tolist()))
    else:
        yield key, value
