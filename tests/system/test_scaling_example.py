"""The scaling model on paper: its formulas by hand, its bytes by count, its README by its own command."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing
from torch.utils.checkpoint import checkpoint

from examples.scaling import report
from examples.scaling.scaling import (
    all_reduce_seconds,
    bytes_sent,
    dispatch_seconds,
    exchange_seconds,
    memory,
    pipeline_seconds,
    predict,
)
from examples.scaling.shapes import Link, Machine, Model, Plan
from examples.scaling.validation import plan_of
from examples.scaling.worked_example import DEVICES, EXAMPLE, FOLDER, NLLB, machines, on_devices
from moe_nmt.distributed.processes import end_process
from moe_nmt.errors import UserError
from moe_nmt.moe import DISPATCHERS, EXPERTS, MoELayer
from moe_nmt.moe.routers import Router
from scripts import bench_distributed
from tests.parts import make_routing

ROOT = Path(__file__).parents[2]
SMALL = Model(2, 2, dim=8, ffn_dim=16, heads=2, vocabulary=100, moe_freq=2, experts=4, k=2, expert_dim=16)
MACHINE = Machine("", 1e6, 0.5, 0.25, 1e9, 1e5, Link(1e4, 2e4, 0.1), Link(1e3, 2e3, 1.0), 2, None, False, True, {})


def plan(ranks, spread, per_node=None, **more):
    return Plan(ranks, spread, per_node or ranks, **{"tokens": 10} | more)


def test_parameters_by_hand():
    attention, norm = 4 * 8 * 8 + 4 * 8, 2 * 8
    dense = 8 * 16 + 16 + 16 * 8 + 8
    encoder = 2 * (attention + 2 * norm) + dense + norm
    decoder = 2 * (2 * attention + 3 * norm) + dense + norm
    assert SMALL.dense_parameters == 100 * 8 + encoder + decoder + 2 * (8 * 4)
    assert SMALL.expert_parameters == 2 * 4 * dense
    assert SMALL.active_parameters == SMALL.dense_parameters + 2 * 2 * dense


def test_the_worked_example_is_the_architecture_with_its_parameters():
    pytest.importorskip("fairseq")
    from examples.scaling.predict import NLLB_VOCABULARY, architecture

    assert architecture("transformer_moe_nllb", NLLB_VOCABULARY) == NLLB
    assert NLLB.dense_parameters + NLLB.expert_parameters == 54_500_569_088
    assert NLLB.expert_parameters == 51_555_336_192
    assert NLLB.active_parameters == 3_750_785_024


def test_flops_by_hand():
    layers, output = SMALL.dense_flops(tokens=10, sentence=5)
    attention = 2 * (4 * 8 * 8) + 2 * (2 * 5 * 8)  # four projections; scores and what they sum
    assert layers == 10 * (6 * attention + 2 * 2 * (2 * 8 * 16) + 2 * 2 * 8 * 4)
    assert output == 10 * 2 * 8 * 100
    assert SMALL.expert_flops(10) == 10 * 2 * 2 * (2 * 8 * 16)


def test_six_flops_a_parameter_and_token_as_a_rule_of_thumb():
    model = dataclasses.replace(NLLB, moe_freq=0, vocabulary=1)
    layers, _ = model.dense_flops(tokens=1000, sentence=1)
    assert 3 * layers == pytest.approx(6 * 1000 * model.dense_parameters, rel=0.01)


def test_an_all_to_all_by_hand():
    # 8 ranks, 2 a node: 1 peer within, 6 across; of 8,000 bytes 1,000 go to each
    flat = exchange_seconds(MACHINE, plan(8, 8, 2), 8000)
    assert flat == pytest.approx((0.1 + 1000 / 1e4, 6 * 1.0 + 6000 / 1e3))
    # by node: to one rank of each of 3 other nodes, then to 1 peer half of what came
    assert exchange_seconds(MACHINE, plan(8, 8, 2, by_node=True), 8000) == pytest.approx((0.1 + 0.4, 3 * 1.0 + 6.0))


def test_an_all_reduce_by_hand():
    # a ring of 4: 6 steps, each of a quarter of the bytes
    assert all_reduce_seconds(MACHINE, 40_000, 4, 4) == pytest.approx(6 * 0.1 + 6 * 10_000 / 2e4)
    # 2 nodes of 2: 4 steps within, 2 across; the two cards of a node together
    assert all_reduce_seconds(MACHINE, 40_000, 4, 2) == pytest.approx(4 * 0.1 + 2 * 1.0 + 6 * 10_000 / 4e3)
    assert all_reduce_seconds(MACHINE, 40_000, 4, 1) == pytest.approx(6 * 1.0 + 6 * 10_000 / 2e3)


def test_chunks_hide_the_shorter_of_travel_and_computation():
    assert pipeline_seconds(1, 3, chunks=4, overlaps=False) == 4 * (1 + 3 + 1)
    assert pipeline_seconds(1, 3, chunks=4, overlaps=True) == 1 + 4 * 3 + 1
    assert pipeline_seconds(2, 3, chunks=4, overlaps=True) == 2 + 3 + 3 * 4 + 2
    assert pipeline_seconds(1, 3, chunks=1, overlaps=True) == pipeline_seconds(1, 3, chunks=1, overlaps=False)


def test_dispatch_is_four_exchanges_of_rows_and_one_of_counts():
    within, across = dispatch_seconds(MACHINE, plan(2, 2), rows=1000, compute=7)
    assert (within, across) == (pytest.approx(4 * (0.1 + 500 / 1e4) + 0.1), 0)
    recomputed = dispatch_seconds(MACHINE, plan(2, 2, recompute=True), rows=1000, compute=7)
    assert recomputed.within == pytest.approx(6 * (0.1 + 500 / 1e4) + 2 * 0.1)


def test_chunks_hide_twice_as_much_in_the_backward_pass():
    overlapping = dataclasses.replace(MACHINE, overlaps=True)
    exchange, counts, part = 0.1 + 250 / 1e4, 0.1, 0.15  # of one of two chunks
    forward = 2 * exchange + part + 2 * exchange - 2 * part
    backward = 2 * exchange + 2 * part + 2 * part - 4 * part
    found = dispatch_seconds(overlapping, plan(2, 2, chunks=2), rows=1000, compute=2 * part)
    assert found.within == pytest.approx(forward + backward + counts)


def test_bytes_across_nodes_by_hand():
    model = dataclasses.replace(SMALL, experts=8)
    rows, counts = 2 * 4 * (10 * 2 * 8 * 4), 2 * 2 * 8  # of both layers: rows four times, int64 in two chunks
    flat = bytes_sent(model, plan(8, 8, 2, chunks=2))
    assert flat == (rows * 1 / 8 + counts, rows * 6 / 8 + 6 * counts)
    by_node = bytes_sent(model, plan(8, 8, 2, chunks=2, by_node=True))
    assert by_node == (rows * 1 / 2 + counts, rows * 3 / 4 + 3 * 2 * counts)


def test_an_update_by_hand():
    found = predict(SMALL, plan(1, 1, sentence=5), MACHINE).seconds
    layers, output = SMALL.dense_flops(10, 5)
    parameters = SMALL.dense_parameters + SMALL.expert_parameters
    assert found["dense layers"] == pytest.approx(3 * (layers + output) / 5e5)
    recomputed = predict(SMALL, plan(1, 1, sentence=5, recompute=True), MACHINE).seconds
    assert recomputed["dense layers"] == pytest.approx((4 * layers + 3 * output) / 5e5)
    assert found["optimizer"] == pytest.approx(parameters * 7 * 4 / 1e5)
    reading = SMALL.expert_parameters / 2 * 4 / 1e5  # of a layer, more than its arithmetic takes
    assert found["experts"] == pytest.approx(2 * 3 * reading)
    many = predict(SMALL, plan(1, 1, tokens=10_000), MACHINE).seconds
    assert many["experts"] == pytest.approx(2 * 3 * SMALL.expert_flops(10_000) / 2.5e5)


def test_memory_by_hand():
    held = memory(SMALL, plan(2, 2))
    parameters = SMALL.dense_parameters + SMALL.expert_parameters / 2
    assert (held["weights"], held["gradients"], held["optimizer"]) == (4 * parameters, 4 * parameters, 8 * parameters)
    assert held["logits"] == 10 * 100 * 8
    mixed = memory(SMALL, plan(2, 2, precision="bf16"))
    assert mixed["weights"] + mixed["gradients"] + mixed["optimizer"] == 20 * parameters
    lean = memory(SMALL, plan(2, 2, precision="memory_efficient_bf16"))
    assert lean["weights"] + lean["gradients"] + lean["optimizer"] == 12 * parameters
    assert memory(SMALL, plan(2, 2, recompute=True))["activations"] < held["activations"]


def test_alone_nothing_is_communicated():
    found = predict(NLLB, dataclasses.replace(EXAMPLE, ranks=1, expert_ranks=1, ranks_per_node=1), MACHINE)
    computed = ("dense layers", "experts", "optimizer")
    assert {name for name, seconds in found.seconds.items() if seconds} == set(computed)
    assert found.sent == (0, 0)


def test_copies_of_the_experts_send_no_rows_but_their_gradients():
    copies, spread = (predict(SMALL, plan(4, count), MACHINE).seconds for count in (1, 4))
    assert copies["dispatch within node"] == 0 < spread["dispatch within node"]
    assert spread["gradients of replicas"] == 0
    assert copies["gradients of replicas"] == all_reduce_seconds(MACHINE, 4 * SMALL.expert_parameters, 4, 4)
    assert copies["gradients of dense layers"] == spread["gradients of dense layers"]


def test_more_devices_hold_less_each_and_do_more_together():
    found = [predict(NLLB, on_devices(count), machines()["a100"]) for count in DEVICES]
    held = [each.held for each in found]
    assert held == sorted(held, reverse=True) and held[-1] == held[-2]
    rates = [count / each.step for count, each in zip(DEVICES, found, strict=True)]
    assert rates == sorted(rates)
    assert all(each.flops_utilization < 0.44 for each in found)


def test_ranks_share_cores():
    shared = dataclasses.replace(MACHINE, cores=2)
    alone, two, four = (predict(SMALL, plan(ranks, 1), shared).seconds for ranks in (1, 2, 4))
    assert alone["dense layers"] == two["dense layers"] == four["dense layers"] / 2


def test_gradients_travel_once_an_update():
    once, twice = (predict(SMALL, plan(2, 2, update_freq=times), MACHINE).seconds for times in (1, 2))
    for name in ("dense layers", "experts", "dispatch within node"):
        assert twice[name] == pytest.approx(2 * once[name])
    for name in ("gradients of dense layers", "optimizer"):
        assert twice[name] == once[name]


class InTurn(Router):
    """Every expert gets as many tokens; the weights depend on the input, so that there are gradients."""

    experts_per_token = 2

    def forward(self, x_ND, context):
        edges = [(token, (2 * token + choice) % 4, 1.0) for token in range(len(x_ND)) for choice in (0, 1)]
        routing = make_routing(edges, len(x_ND), 4)
        return routing._replace(weight_A=routing.weight_A * x_ND.mean(1)[routing.token_A].float())


COUNTED = {
    "flat": (None, {}),
    "in chunks": (None, {"chunks": 5}),
    "recomputed": (None, {"recompute": True}),
    "across nodes": (1, {"chunks": 2}),
    "by node": (1, {"by_node": True, "chunks": 2}),
}


def count_on_rank(rank, port, path):
    """What two layers on each of two ranks send in an update, in every way."""
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = {}
    for name, (per_node, options) in COUNTED.items():
        recompute = options.get("recompute", False)
        spec = ", ".join(f"{option}={value}" for option, value in options.items() if option != "recompute")
        layers = []
        for _ in range(2):
            experts = EXPERTS.build("ffn(count=4)", dim=8, ffn_dim=16)
            dispatcher = DISPATCHERS.build(f"all_to_all({spec})", num_experts=4, ranks_per_node=per_node)
            experts.take_part(rank, 2)
            layers.append(MoELayer(InTurn(), experts, dispatcher))
        x = torch.randn(10, 8, requires_grad=True)
        for layer in layers:
            y = checkpoint(lambda z, layer=layer: layer(z)[0], x, use_reentrant=False) if recompute else layer(x)[0]
            x = x + y
        x.sum().backward()
        sent = [layer.dispatcher.traffic.take() for layer in layers]
        found[name] = [sum(each.within for each in sent), sum(each.across for each in sent)]
    Path(f"{path}/{rank}.json").write_text(json.dumps(found))
    end_process()


def test_bytes_predicted_are_the_bytes_counted(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    multiprocessing.spawn(count_on_rank, (port, str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        counted = json.loads((tmp_path / f"{rank}.json").read_text())
        for name, (per_node, options) in COUNTED.items():
            assert tuple(counted[name]) == bytes_sent(SMALL, plan(2, 2, per_node, **options)), name


def test_cases_of_the_benchmark_are_understood():
    by_node = plan_of("4 × all_to_all(by_node=True)", 8)
    assert (by_node.ranks, by_node.expert_ranks, by_node.ranks_per_node, by_node.by_node) == (4, 4, 2, True)
    assert plan_of("4 × all_to_all(ranks=2)", 8).expert_ranks == 2
    assert plan_of("2 × sorted", 8).expert_ranks == 1
    names = [str(case) for case in bench_distributed.cases([1, 2, 4])]
    assert names == list(json.loads((FOLDER / "training.json").read_text())["cases"])


def test_every_machine_says_where_its_constants_come_from():
    for name, machine in machines().items():
        constants = {"flops", "utilization", "expert_utilization", "memory", "memory_bandwidth", "within", "across"}
        assert constants <= machine.sources.keys()
        assert machine.measured == (name == "here")


def test_the_readme_is_what_the_command_writes():
    text = report.README.read_text(encoding="utf-8")
    assert report.with_tables(text) == text


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"ranks": 6, "expert_ranks": 4}, "ranks that share the experts, 4, must divide the number of ranks, 6"),
        ({"ranks": 8, "ranks_per_node": 3}, "ranks of a node, 3"),
        ({"precision": "int8"}, "choose one of fp32"),
        ({"chunks": 0}, "at least 1"),
    ],
)
def test_plans_that_cannot_be_are_refused(numbers, words):
    with pytest.raises(UserError, match=words):
        Plan(**{"ranks": 4, "expert_ranks": 2, "ranks_per_node": 2, "tokens": 10} | numbers)


def test_a_file_that_is_no_machine_is_refused(tmp_path):
    (tmp_path / "rubbish.json").write_text('{"name": "x", "within": {"bandwidth": 1}}')
    with pytest.raises(UserError, match="needs a JSON object of name, flops"):
        Machine.load(tmp_path / "rubbish.json")


def test_figures_of_a_training_leave_out_the_warm_up():
    rank = {"peak": 5, "parameters": 7, "vocabulary": 9}
    first = rank | {"seconds": [9, 1, 3], "within": [9, 4, 6], "across": [0, 0, 0], "rows": [9, 30, 30]}
    second = rank | {"seconds": [9, 2, 2], "within": [9, 0, 2], "across": [0, 0, 0], "rows": [9, 10, 10]}
    found = bench_distributed.figures([first | {"tokens": [9, 10, 20]}, second | {"tokens": [9, 10, 20]}], 1)
    assert found["seconds"] == 2.5 and found["tokens"] == 30 and found["within"] == 3 and found["imbalance"] == 1.5


@pytest.mark.slow
def test_commands(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def run(*command):
        done = subprocess.run(map(str, command), capture_output=True, text=True, cwd=ROOT, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    flags = ("--ranks", "1,2", "--quick", "--work", tmp_path, "--json", tmp_path / "training.json")
    assert "| 2 × all_to_all |" in run(sys.executable, "scripts/bench_distributed.py", *flags)
    run(sys.executable, "-m", "examples.scaling.measure", tmp_path / "here.json", "--rounds", "1")
    assert Machine.load(tmp_path / "here.json").measured
    shape = ("--arch", "transformer_moe_base", "--ranks", "2", "--tokens", "512")
    printed = run(sys.executable, "-m", "examples.scaling.predict", "--machine", tmp_path / "here.json", *shape)
    assert "**update**" in printed and "**memory of a device**" in printed
