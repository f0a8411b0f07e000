"""Translating with experts spread over ranks: the commands themselves, on processes over gloo."""

import json
import re
import shutil
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from fairseq.dataclass.configs import GenerationConfig
from torch import distributed, multiprocessing

from moe_nmt.distributed.processes import end_process, free_port
from moe_nmt.evaluation.resuming import journal
from moe_nmt.fairseq_plugin import spreading
from moe_nmt.fairseq_plugin.decoding import decode, load_test_sets
from moe_nmt.fairseq_plugin.spreading import in_lock_step, spread_experts
from moe_nmt.fairseq_plugin.translation import journals, load
from moe_nmt.moe import MoELayer
from tests.distributed.ranks import finish, must_run_on_ranks, run_on_ranks, start
from tests.fairseq.conftest import BIN, corpus, must_run, trained  # noqa: F401

MOE_NMT = BIN / "moe-nmt"
BATCHES = ("--max-tokens", "150")
JOURNAL = ".translations.journal"


def command(corpus, checkpoint, output, *flags, name="translate"):  # noqa: F811
    return [MOE_NMT, name, checkpoint, corpus.data, "--output", output, "--cpu", *BATCHES, *flags]


def contents(folder: Path):
    return {path.stem: path.read_bytes() for path in folder.glob("*.hyp")}


def sentences(done):
    """The errors that ranks tell of, each by one sentence."""
    said = "".join(rank.stderr for rank in done)
    assert "Traceback" not in said, said[-3000:]
    return re.findall(r"^moe.nmt: error: (.*)$", said, flags=re.M)


@pytest.fixture(scope="module")
def alone(corpus, trained, tmp_path_factory):  # noqa: F811
    """What one rank translates."""
    folder = tmp_path_factory.mktemp("alone")
    must_run(command(corpus, trained, folder))
    return folder


def test_two_ranks_evaluate_as_one(corpus, trained, alone, tmp_path):  # noqa: F811
    torchrun = ["torchrun", "--nproc-per-node", "2", "--no-python"]
    done = must_run([*torchrun, *command(corpus, trained, tmp_path, name="evaluate")])
    assert contents(tmp_path) == contents(alone)
    assert done.stdout.count(str(tmp_path / "index.html")) == 1
    must_run(["moe-nmt", "score", alone, "--corpus", corpus.folder, "--output", alone / "scores"])
    ours, theirs = (json.loads((folder / "scores.json").read_text()) for folder in (tmp_path, alone / "scores"))
    assert ours["directions"] == theirs["directions"]
    assert not list(tmp_path.glob(f"{JOURNAL}*"))


def test_four_ranks_take_any_dispatcher_of_training(corpus, trained, alone, tmp_path):  # noqa: F811
    state = torch.load(trained, weights_only=True)
    state["cfg"]["model"].moe_dispatch = "all_to_all(ranks=3,chunks=2)"
    state["cfg"]["model"].moe_ranks_per_node = 3
    torch.save(state, tmp_path / "trained.pt")
    must_run_on_ranks(4, command(corpus, tmp_path / "trained.pt", tmp_path / "output"))
    assert contents(tmp_path / "output") == contents(alone)


def generate_command(corpus, checkpoint, results, *flags):  # noqa: F811
    options = corpus.generate_command(checkpoint, "eng-ell", "--results-path", results, *flags)
    at = options.index("--user-dir")
    return [MOE_NMT, "generate", *options[1:at], *options[at + 2 :]]


@pytest.mark.parametrize(
    ("ranks", "flags"),
    [
        (3, BATCHES),  # these do not share experts, for 4 is no multiple
        (2, ("--max-tokens", "12000")),  # one has no batch
        (2, (*BATCHES, "--no-repeat-ngram-size", "2", "--nbest", "2", "--print-alignment", "hard")),  # fairseq's search
    ],
)
def test_generate_writes_what_one_rank_writes(corpus, trained, tmp_path, ranks, flags):  # noqa: F811
    must_run(generate_command(corpus, trained, tmp_path / "alone", *flags))
    done = must_run_on_ranks(ranks, generate_command(corpus, trained, tmp_path / "ranks", *flags))
    ours, theirs = (Path(tmp_path, name, "generate-test.txt").read_text().splitlines() for name in ("ranks", "alone"))
    kept = [line for line in theirs if re.match(r"[A-Z]-\d+\t|Generate ", line)]
    assert [line for line in ours if re.match(r"[A-Z]-\d+\t|Generate ", line)] == kept
    assert len(kept) > 4 * 20 and kept[-1].startswith("Generate test with beam=4: BLEU")
    everything = "".join(rank.stdout + rank.stderr for rank in done) + "\n".join(ours)
    assert re.findall(r"Translated (\d+) sentences", everything) == ["20"]


def interrupted(processes, folder, ranks, whom):
    """Kill processes as soon as every rank has a batch or two in its journal; what all of them did."""
    paths = [folder / (f"{JOURNAL}.{rank}" if rank else JOURNAL) for rank in range(ranks)]
    while not all(path.exists() and path.read_bytes().count(b"\n") > 1 for path in paths):
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.005)
    for process in whom:
        process.send_signal(signal.SIGKILL)
    return finish(processes)


def test_killed_and_taken_up_by_another_number_of_ranks(corpus, trained, alone, tmp_path):  # noqa: F811
    processes = start(4, command(corpus, trained, tmp_path))
    interrupted(processes, tmp_path, 4, processes)
    assert not contents(tmp_path)
    assert 4 <= len(kept_by_one_rank(tmp_path, tmp_path / "copy")) < 20 * len(corpus.pairs)
    must_run_on_ranks(2, command(corpus, trained, tmp_path))
    assert contents(tmp_path) == contents(alone)
    names = {"translations.json", *(f"{pair}.hyp" for pair in corpus.pairs)}
    assert {path.name for path in tmp_path.iterdir()} == names


def kept_by_one_rank(folder, copy):
    """What one rank would go on with: all that is in the journals of all."""
    lines = [
        line.split(maxsplit=1)[1] for path in folder.glob(f"{JOURNAL}*") for line in path.read_bytes().splitlines()
    ]
    work = json.loads(lines[0])
    shutil.copytree(folder, copy)
    with journals(copy / JOURNAL, work) as (_, finished):
        assert [path.name for path in copy.iterdir()] == [JOURNAL]
    shutil.rmtree(copy)
    entries = [json.loads(line) for line in lines]
    assert finished == {number: text for entry in entries if entry != work for number, text in entry}
    return finished


def test_a_killed_rank_ends_the_others_with_one_sentence(corpus, trained, tmp_path):  # noqa: F811
    processes = start(3, command(corpus, trained, tmp_path, "--model-overrides", "{'moe_router': 'top_k(k=3)'}"))
    done = interrupted(processes, tmp_path, 3, processes[2:])
    assert [rank.returncode for rank in done] == [2, 2, -signal.SIGKILL]
    (said,) = sentences(done)
    assert "one of the processes has ended" in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--directions", "eng-xyz"), "no language 'xyz'"),
        (("--model-overrides", "{'moe_dispatch': 'all_to_all(ranks=3)'}"), "ranks=3 must divide"),
    ],
)
def test_what_is_wrong_on_all_ranks_is_said_once(corpus, trained, tmp_path, flags, words):  # noqa: F811
    done = run_on_ranks(2, command(corpus, trained, tmp_path, *flags))
    assert [rank.returncode for rank in done] == [2, 2]
    (said,) = sentences(done)
    assert words in said


def test_what_is_wrong_on_one_rank_ends_all(corpus, trained, tmp_path):  # noqa: F811
    (tmp_path / f"{JOURNAL}.1").mkdir(parents=True)
    done = run_on_ranks(2, command(corpus, trained, tmp_path))
    assert [rank.returncode for rank in done] == [2, 2]
    (said,) = sentences(done)
    assert f"{JOURNAL}.1" in said


def test_the_dispatcher_of_a_checkpoint(monkeypatch):
    def dispatch(trained_with, chosen=()):
        options = type("Options", (), {"moe_dispatch": trained_with, "moe_ranks_per_node": 2})()
        spread_experts({"cfg": {"model": options}}, chosen)
        return options.moe_dispatch, options.moe_ranks_per_node

    assert dispatch("sorted") == ("sorted", 2)
    monkeypatch.setattr(spreading, "world_size", lambda: 2)
    assert dispatch("sorted") == dispatch("reference") == ("all_to_all", None)
    assert dispatch("all_to_all(ranks=4, chunks=2, by_node=True)") == ("all_to_all(chunks=2, by_node=True)", None)
    assert dispatch("sorted", {"moe_dispatch": "reference"}) == ("sorted", 2)


def on_rank(rank, port, corpus, checkpoint, folder):  # noqa: F811
    """Decode, with the work of one rank dealt to the other, and note what the layers did."""
    torch.set_num_threads(1)
    meeting = {"init_method": f"tcp://127.0.0.1:{port}", "timeout": timedelta(seconds=300)}
    distributed.init_process_group("gloo", **meeting, rank=rank, world_size=2)
    task, model = load(checkpoint, {"data": str(corpus.data)})
    model.make_generation_fast_()
    sets = load_test_sets(task, model, "test", task.directions, 150)
    if rank == 1:
        sets.own_batches = lambda *_: []
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MoELayer)}
    rows = []
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, inputs, name=name: rows.append((name, len(inputs[0]))))
    search = GenerationConfig(beam=2, max_len_a=0, max_len_b=5)
    texts = {number: text for batch in decode(task, model, sets, search, 150) for number, text in batch.items()}
    shapes = {len(layer.experts.weight1_EDF) for layer in layers.values()}
    sent = sum(sum(layer.dispatcher.traffic.sent) for layer in layers.values())
    torch.save({"texts": texts, "rows": rows, "shapes": shapes, "sent": sent}, f"{folder}/{rank}.pt")
    end_process()


def test_a_rank_without_work_serves_the_same_layers_with_no_tokens(corpus, trained, tmp_path):  # noqa: F811
    multiprocessing.spawn(on_rank, (free_port(), corpus, trained, tmp_path), nprocs=2)
    busy, idle = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert [name for name, _ in busy["rows"]] == [name for name, _ in idle["rows"]]
    assert {count for _, count in idle["rows"]} == {0} and min(count for _, count in busy["rows"]) > 0
    assert busy["shapes"] == idle["shapes"] == {2}
    assert busy["sent"] > 0 and idle["sent"] > 0
    assert idle["texts"] == {} and len(busy["texts"]) < 20 * len(corpus.pairs)


def test_one_rank_is_left_as_it_is(corpus, trained):  # noqa: F811
    _, model = load(trained, {"data": str(corpus.data)})
    with in_lock_step([model]) as lock_step:
        assert lock_step is None
        assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_second_translation_into_the_same_folder_is_refused(corpus, trained, tmp_path):  # noqa: F811
    with journal(tmp_path / JOURNAL, "other work"):
        done = run_on_ranks(2, command(corpus, trained, tmp_path))
    assert [rank.returncode for rank in done] == [2, 2]
    (said,) = sentences(done)
    assert "another process is writing" in said
