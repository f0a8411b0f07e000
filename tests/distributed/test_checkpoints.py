"""Checkpoints of any number of ranks, in one file or with experts apart: trainings go on as if nothing had happened."""

import shutil
import signal
from pathlib import Path

import pytest
import torch

from moe_nmt.distributed.groups import ExpertGroup
from moe_nmt.distributed.processes import free_port
from moe_nmt.distributed.shards import INDEX, ShardedExperts, write_folder
from moe_nmt.errors import UserError
from moe_nmt.fairseq_plugin.checkpoints import CheckpointFile, consolidate, load
from moe_nmt.fairseq_plugin.inspection import describe
from moe_nmt.fairseq_plugin.sharded import OPTIMIZER, put_back, tidy
from tests.fairseq import conftest
from tests.fairseq.test_curriculum import WARM, fairseq_train, write
from tests.fairseq.test_resume import assert_equal

corpus = conftest.corpus

BATCHES = 4
"""Batches in an update of all ranks together."""
SMALL = (
    *("--encoder-embed-dim", "32", "--decoder-embed-dim", "32"),
    *("--encoder-ffn-embed-dim", "48", "--decoder-ffn-embed-dim", "48"),
    *("--dropout", "0", "--max-tokens", "150", "--lr", "0.001", "--clip-norm", "0.5"),
    *("--disable-validation", "--no-epoch-checkpoints"),
)
ADAM = (
    *("--optimizer", "moe_adam", "--moe-adam-touched-only", "--store-ema", "--ema-fp32", "--ema-decay", "0.5"),
    *("--freezing", "train_only(match='layer_norm|moe|decoder.layers.0')"),
)
SPREAD, REPLICAS, SORTED = (("--moe-dispatch", value) for value in ("all_to_all", "all_to_all(ranks=2)", "sorted"))
APART = ("--moe-sharded-checkpoints",)


def start(corpus, save_dir: Path, updates: int, ranks: int, *flags: str, kill_at: int | None = None):
    """Train to `updates` with the same batches for any number of ranks; their logs and exit statuses."""
    flags = (*SMALL, "--update-freq", str(BATCHES // ranks), *flags)
    if ranks > 1:
        flags += ("--distributed-backend", "gloo", "--distributed-init-method", f"tcp://127.0.0.1:{free_port()}")
        flags += ("--distributed-world-size", str(ranks), "--distributed-no-spawn", "--ddp-backend", "legacy_ddp")
    logs = [save_dir.with_name(f"{save_dir.name}.{rank}.log") for rank in range(ranks)]
    processes = []
    for rank, log in enumerate(logs):
        own = ("--distributed-rank", str(rank)) if ranks > 1 else ()
        command = [str(word) for word in corpus.train_command(save_dir, updates, *flags, *own)]
        processes.append(WARM.Process(target=fairseq_train, args=(command, str(log), kill_at)))
        processes[-1].start()
    for process in processes:
        process.join(300)
    return [log.read_text() for log in logs], [process.exitcode for process in processes]


def train(corpus, save_dir: Path, updates: int, ranks: int, *flags: str) -> Path:
    """`start` and succeed; the last checkpoint."""
    logs, statuses = start(corpus, save_dir, updates, ranks, *flags)
    assert statuses == [0] * ranks, "\n".join(log[-2500:] for log in logs)
    return save_dir / "checkpoint_last.pt"


def resume(corpus, source: Path, folder: Path, updates: int, ranks: int, *flags: str) -> Path:
    """Go on from a copy of the folder of a checkpoint."""
    shutil.copytree(source.parent, folder)
    return train(corpus, folder, updates, ranks, *flags)


def whole(path: Path) -> dict:
    """A checkpoint with all its experts."""
    state = load(path)
    put_back(state, path)
    return state


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """The parameters, averaged parameters and state of the optimizer in a checkpoint."""
    state = whole(path)
    extra = {name: state["extra_state"][name] for name in ("ema", "ema_fp32_params") if name in state["extra_state"]}
    moments = {f"{n}/{key}": value for n, entry in state[OPTIMIZER]["state"].items() for key, value in entry.items()}
    return {
        f"{part}/{name}": torch.as_tensor(value)
        for part, values in {"model": state["model"], **extra, "optimizer": moments}.items()
        for name, value in values.items()
    }


def mean_loss(path: Path) -> float:
    """The mean loss of the epoch so far, in full precision."""
    meters = load(path)["extra_state"]["metrics"]["train"]
    meter = next(state for _, name, _, state in meters if name == "nll_loss")
    return float(meter["sum"] / meter["count"])


def assert_close(found: Path, wanted: Path, tolerance: float = 1e-5) -> None:
    """The same tensors, in the same order and of the same kind, to a tolerance."""
    found, wanted = tensors(found), tensors(wanted)
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype), name
        assert torch.allclose(found[name].double(), value.double(), rtol=0, atol=tolerance), name


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory) -> dict[int, Path]:
    """Trainings of one rank, by their number of updates."""
    folder = tmp_path_factory.mktemp("alone")
    return {updates: train(corpus, folder / str(updates), updates, 1, *ADAM) for updates in (5, 11)}


@pytest.fixture(scope="module")
def in_one_file(corpus, tmp_path_factory) -> Path:
    return train(corpus, tmp_path_factory.mktemp("four") / "one_file", 5, 4, *SPREAD, *ADAM)


@pytest.fixture(scope="module")
def apart(corpus, tmp_path_factory) -> Path:
    return train(corpus, tmp_path_factory.mktemp("four") / "apart", 5, 4, *SPREAD, *ADAM, *APART)


def test_four_ranks_write_what_one_does(alone, in_one_file, apart, tmp_path):
    assert_close(in_one_file, alone[5], 1e-6)
    assert_equal(tensors(apart), tensors(in_one_file))
    assert in_one_file.stat().st_size > apart.stat().st_size
    assert load(apart)["model"]["encoder.layers.1.feed_forward.moe.experts.weight1_EDF"] is None
    assert len(list((apart.parent / "experts-5").glob("*-of-00004.safetensors"))) == 4
    consolidate(apart, tmp_path / "one.pt")
    assert_equal(tensors(tmp_path / "one.pt"), tensors(in_one_file))
    assert load(tmp_path / "one.pt").keys() == load(in_one_file).keys()
    with pytest.raises(UserError, match="is one file already"):
        consolidate(tmp_path / "one.pt", tmp_path / "two.pt")


def test_saved_on_four_resumed_on_two_then_one(corpus, alone, apart, tmp_path):
    on_two = resume(corpus, apart, tmp_path / "run", 8, 2, *SPREAD, *ADAM)
    assert [path.name for path in on_two.parent.iterdir()] == [on_two.name]
    on_one = train(corpus, tmp_path / "run", 11, 1, *SPREAD, *ADAM)
    assert_close(on_one, alone[11])
    assert mean_loss(on_one) == pytest.approx(mean_loss(alone[11]), abs=1e-5)


def test_saved_on_one_resumed_as_replicas_then_by_another_dispatcher(corpus, alone, tmp_path):
    on_four = resume(corpus, alone[5], tmp_path / "run", 8, 4, *REPLICAS, *ADAM, *APART)
    assert len(list((on_four.parent / "experts-8").glob("*.safetensors"))) == 2
    on_two = train(corpus, tmp_path / "run", 11, 2, *SORTED, *ADAM)
    assert_close(on_two, alone[11])
    assert mean_loss(on_two) == pytest.approx(mean_loss(alone[11]), abs=1e-5)


@pytest.mark.parametrize(
    "flags",
    [
        ("--memory-efficient-bf16", "--optimizer", "moe_adam", "--moe-adam-touched-only"),
        (*APART, "--memory-efficient-fp16", "--fp16-init-scale", "4"),
    ],
)
def test_killed_and_resumed_on_as_many_ranks(corpus, flags, tmp_path):
    flags = (*SPREAD, *flags, "--save-interval-updates", "3", "--keep-interval-updates", "1")
    _, statuses = start(corpus, tmp_path / "killed", 8, 2, *flags, kill_at=5)
    assert statuses == [-signal.SIGKILL] * 2
    if "--moe-sharded-checkpoints" in flags:  # as by a kill between the folder and the checkpoint, and amid the folder
        shutil.copytree(tmp_path / "killed/experts-3", tmp_path / "killed/experts-6")
        shutil.copytree(tmp_path / "killed/experts-3", tmp_path / "killed/.experts-7.tmp")
    killed = train(corpus, tmp_path / "killed", 8, 2, *flags)
    unbroken = train(corpus, tmp_path / "unbroken", 8, 2, *flags)
    assert_equal(tensors(killed), tensors(unbroken))
    assert mean_loss(killed) == mean_loss(unbroken)
    names = {path.name for path in killed.parent.iterdir()}
    folders = {"experts-6", "experts-8"} if "--moe-sharded-checkpoints" in flags else set()
    assert names == {"checkpoint_last.pt", "checkpoint_1_6.pt"} | folders


def test_the_place_in_a_virtual_epoch_of_a_curriculum(corpus, tmp_path):
    starts = {"eng-fra": 0, "fra-eng": 0, "eng-deu": 8, "deu-eng": 8, "eng-ell": 8, "ell-eng": 8}
    curriculum = ("--curriculum-phases", str(write(tmp_path / "curriculum.tsv", starts)))
    flags = (*SPREAD, *curriculum, "--virtual-epoch-size", "200", "--log-format", "json", "--log-interval", "1")
    train(corpus, tmp_path / "run", 5, 4, *flags)
    resumed = train(corpus, tmp_path / "run", 10, 2, *flags)
    assert "given now rule" not in (tmp_path / "run.0.log").read_text()
    unbroken = train(corpus, tmp_path / "unbroken", 10, 1, *flags)
    assert_close(resumed, unbroken)
    places = [load(path)["extra_state"]["train_iterator"] for path in (resumed, unbroken)]
    assert places[0]["epoch"] == places[1]["epoch"] > 1
    assert places[0]["iterations_in_epoch"] * 2 == places[1]["iterations_in_epoch"] > 0


def test_another_optimizer(corpus, tmp_path):
    flags = ("--optimizer", "adadelta", "--lr", "0.1")
    unbroken = train(corpus, tmp_path / "unbroken", 4, 1, *flags)
    train(corpus, tmp_path / "run", 2, 2, *SPREAD, *flags)
    assert_close(train(corpus, tmp_path / "run", 4, 1, *flags), unbroken)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--optimizer", "adafactor"), ("--optimizer adafactor", "choose one of adam, moe_adam")),
        (("--fp16-adam-stats",), ("--fp16-adam-stats does not go with experts that are spread", "leave it out")),
    ],
)
def test_what_does_not_go_with_spread_experts_is_refused(corpus, flags, words, tmp_path):
    (log, _), statuses = start(corpus, tmp_path / "run", 2, 2, *SPREAD, *flags)
    assert statuses == [2, 2] and "Traceback" not in log
    assert all(word in log.splitlines()[-1] for word in words), log[-2000:]


def test_a_moved_checkpoint_translates_and_is_trained_further(corpus, apart, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(apart.parent, moved)
    consolidate(apart, tmp_path / "one.pt")
    assert describe(str(moved / apart.name), 0) == describe(str(tmp_path / "one.pt"), 0)
    heard = [
        conftest.must_run(corpus.generate_command(path, "eng-fra", "--max-len-b", "5")).stdout
        for path in (moved / apart.name, tmp_path / "one.pt")
    ]
    texts = [[line for line in text.splitlines() if line.startswith(("H-", "P-"))] for text in heard]
    assert texts[0] == texts[1] != []
    flags = ("--finetune-from-model", str(moved / apart.name), "--lr", "1e-12")
    tuned = train(corpus, tmp_path / "tuned", 1, 2, *SPREAD, *flags)
    for name, value in whole(apart)["model"].items():
        assert torch.allclose(whole(tuned)["model"][name], value, atol=1e-7), name


FILE = "experts-00002-of-00004.safetensors"


def missing(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def foreign(path: Path) -> None:
    shutil.copy(path.with_name("experts-00003-of-00004.safetensors"), path)


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def rubbish(path: Path) -> None:
    path.write_bytes(b"\xff" * 50)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", [FILE, INDEX])
@pytest.mark.parametrize("spoil", [missing, cut, foreign, damaged, rubbish, emptied])
def test_a_spoilt_folder_is_one_sentence(apart, name, spoil, tmp_path):
    shutil.copytree(apart.parent, tmp_path / "copy")
    folder = tmp_path / "copy/experts-5"
    spoil(folder / name)
    with pytest.raises(UserError, match=f"{folder / name} is .*; put the folder of its experts beside the checkpoint"):
        whole(tmp_path / "copy" / apart.name)


def test_a_lost_folder_stops_all_ranks(corpus, apart, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(apart, tmp_path / "run")
    logs, statuses = start(corpus, tmp_path / "run", 8, 2, *SPREAD, *ADAM)
    assert statuses == [2, 2]
    assert f"there is no folder {tmp_path / 'run/experts-5'}" in logs[0] and "Traceback" not in logs[0]
    with pytest.raises(UserError, match="there is no folder"):
        CheckpointFile(tmp_path / "run" / apart.name)


def test_a_model_of_other_experts(corpus, in_one_file, apart, tmp_path):
    for source, count in ((in_one_file, 8), (apart, 2)):
        flags = (*SPREAD, "--moe-experts", f"ffn(count={count})", "--finetune-from-model", str(source))
        logs, statuses = start(corpus, tmp_path / str(count), 1, 2, *flags)
        assert statuses == [2, 2], logs[0][-2000:]
        assert "has 4 experts in encoder.layers.1" in logs[0] and f"and the model {count}" in logs[0]


def test_saving_where_no_file_is_due(corpus, tmp_path):
    flags = (*SPREAD, *APART, "--no-last-checkpoints", "--save-interval-updates", "2")
    train(corpus, tmp_path / "run", 3, 2, *flags)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoint_1_2.pt", "experts-2"}


GROUP = ExpertGroup()


def experts(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 3, 2, generator=generator)
    step = torch.arange(6)
    return {"model/w": weight, "ema/w": weight, f"{OPTIMIZER}/0/step": step, "model/half": weight.bfloat16()[:, 0]}


def test_any_number_of_ranks_reads_its_own_part(tmp_path):
    named = write_folder(experts(1), tmp_path, 7, GROUP)
    assert named["folder"] == "experts-7"
    reader = ShardedExperts(tmp_path / "experts-7", named["index"])
    assert set(reader.names()) == experts(1).keys()
    for name, value in experts(1).items():
        for size in (1, 2, 3, 6):
            parts = [reader.part(name, rank, size) for rank in range(size)]
            assert torch.equal(torch.cat(parts), value) and parts[0].dtype == value.dtype
    with pytest.raises(UserError, match="6 experts a layer, which 4 processes cannot share"):
        reader.part("model/w", 0, 4)
    with pytest.raises(UserError, match="written for another checkpoint"):
        ShardedExperts(tmp_path / "experts-7", write_folder(experts(2), tmp_path, 7, GROUP)["index"])


def test_folders_are_removed_when_no_checkpoint_names_them(tmp_path):
    folders = [write_folder(experts(seed), tmp_path, 7, GROUP) for seed in (1, 2, 3)]
    assert [named["folder"] for named in folders] == ["experts-7", "experts-7-2", "experts-7-3"]
    (tmp_path / "experts-9").mkdir()  # someone's own
    shutil.copytree(tmp_path / "experts-7-2", tmp_path / ".experts-7-2.tmp")  # as by a kill in removing it
    torch.save({"model": {}, "experts": folders[0]}, tmp_path / "checkpoint_best.pt")
    torch.save({"model": {}, "experts": folders[2]}, tmp_path / "mine.pt")
    (tmp_path / "checkpoint_last.pt").write_bytes(b"cut")
    tidy(tmp_path)
    assert {path.name for path in tmp_path.glob("experts-*")} == {
        "experts-7",
        "experts-7-2",
        "experts-7-3",
        "experts-9",
    }
    (tmp_path / "checkpoint_last.pt").unlink()
    tidy(tmp_path)
    assert {path.name for path in tmp_path.glob("experts-*")} == {"experts-7", "experts-7-3", "experts-9"}
    assert not list(tmp_path.glob(".experts*"))


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*the checkpoints before it are unharmed"):
        write_folder(experts(1), tmp_path / "file", 7, GROUP)
