"""Which experts the tokens of each language go to, and how far they open the gates, over held-out data."""

from __future__ import annotations

import math
import sys

import torch
from fairseq import checkpoint_utils, utils

from moe_nmt.errors import UserError
from moe_nmt.evaluation.expert_load import ExpertLoad, language_side
from moe_nmt.moe import RoutingStatistics, record_routing


@torch.no_grad()
def count_expert_load(checkpoint: str, data: str, split: str, max_tokens: int) -> ExpertLoad:
    """Run a checkpoint over a split with the reference as the decoder's input; says on stderr how far it is.

    Encoder layers are counted by source language, decoder layers by target language.

    Raises:
        UserError: if the checkpoint or the data cannot be read, or the model has no mixture-of-experts layer.
    """
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([checkpoint], arg_overrides={"data": data})
    model = model.eval().cuda() if torch.cuda.is_available() else model.eval()
    task.load_dataset(split)
    batches = task.get_batch_iterator(
        task.dataset(split), max_tokens=max_tokens, max_positions=task.max_positions()
    ).next_epoch_itr(shuffle=False)
    statistics = RoutingStatistics(len(task.langs))
    for number, sample in enumerate(batches, start=1):
        with record_routing(model) as records:
            model(**(utils.move_to_cuda(sample) if torch.cuda.is_available() else sample)["net_input"])
        statistics.update(records)
        print(f"\rrouting: batch {number}/{len(batches)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    if not statistics.layers:
        raise UserError(
            f"the model of {checkpoint} has no mixture-of-experts layer, so there is no expert load to count."
        )
    sides = {layer: language_side(layer) for layer in statistics.layers}
    loads = {layer: statistics.load(layer, side).tolist() for layer, side in sides.items()}
    gates = {layer: _known(statistics.gate(layer, sides[layer])) for layer in statistics.gated_layers}
    return ExpertLoad(task.langs, loads, gates)


def _known(values: torch.Tensor) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]
