"""Ranks: how they are started, and how all of them end when one has."""

import os
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from fairseq.dataclass.configs import DistributedTrainingConfig
from omegaconf import OmegaConf

from moe_nmt.distributed.processes import free_port
from moe_nmt.errors import UserError
from moe_nmt.fairseq_plugin import launch
from tests.fairseq.conftest import BIN, ROOT, corpus, must_run, run  # noqa: F401

TORCHRUN = ("torchrun", "--nproc-per-node", "2", "--master-port")
QUIET = ("--disable-validation", "--log-interval", "1", "--save-interval-updates", "4")
SPAWNED = ("--distributed-world-size", "2")
WAY_OUT = "the same command goes on from the last checkpoint."
LOST = "one of the 2 ranks has ended, or been silent for {} s (--moe-timeout), and the others cannot go on without it; "


def without_user_dir(command):
    place = command.index("--user-dir")
    return [*command[:place], *command[place + 2 :]]


def ways_to_launch(corpus, tmp_path):  # noqa: F811
    """The name of each way, and its command, which trains in a folder of this name."""
    command = {name: corpus.train_command(tmp_path / name, 4, *QUIET) for name in ("script", "module", "spawned")}
    yield "script", [*TORCHRUN, str(free_port()), BIN / "fairseq-train", *command["script"][1:]]
    module = without_user_dir(command["module"])
    yield "module", [*TORCHRUN, str(free_port()), "-m", "moe_nmt", "train", *module[1:]]
    yield "spawned", [sys.executable, "-m", "moe_nmt", "train", *without_user_dir(command["spawned"])[1:], *SPAWNED]


def test_every_way_to_launch_trains_the_same_model(corpus, tmp_path):  # noqa: F811
    models = []
    for name, command in ways_to_launch(corpus, tmp_path):
        log = must_run(command).stdout
        assert "| INFO | fairseq_cli.train | training on 2 devices" in log and log.count("| INFO | train |") == 1
        models.append(torch.load(tmp_path / name / "checkpoint_last.pt")["model"])
    for model in models[1:]:
        assert all(torch.equal(model[name], value) for name, value in models[0].items())


def test_validation_on_two_ranks_has_the_loss_of_one(corpus, tmp_path):  # noqa: F811
    must_run(corpus.train_command(tmp_path, 2, *QUIET))
    flags = [*corpus.task_flags, "--path", tmp_path / "checkpoint_last.pt", "--batch-size", "10"]
    command = ["fairseq-validate", corpus.data, *flags]
    losses = []
    for more in ((), SPAWNED):
        log = must_run([*command, *more]).stdout
        losses.append(float(log.split("| valid on 'valid' subset | loss ")[1].split()[0]))
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)


def train_and_end(command, ending: str) -> subprocess.CompletedProcess:
    """Run `command`, one of whose ranks ends so."""
    script = [sys.executable, ROOT / "tests/distributed/ending.py", *command[1:]]
    environment = {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(c) for c in script],
        capture_output=True,
        text=True,
        env=os.environ | environment | {"ENDING": ending},
        timeout=300,
    )


def sentences(stderr: str) -> list[str]:
    """What the command itself has said; torch's launcher logs the processes that it ends."""
    return [line for line in stderr.splitlines() if not line[1:2].isdigit()]


def test_a_spawned_rank_is_killed(corpus, tmp_path):  # noqa: F811
    command = corpus.train_command(tmp_path, 8, *QUIET, *SPAWNED)
    done = train_and_end(command, "1 6 SIGKILL")
    assert done.returncode == 2 and sentences(done.stderr) in (
        [f"moe_nmt: error: rank 1 was killed by SIGKILL; {WAY_OUT}"],
        [f"moe_nmt: error: {LOST.format(600)}{WAY_OUT}"],
    )
    log = must_run(command).stdout
    assert "Loaded checkpoint" in log and "@ 4 updates" in log and "done training" in log


def test_a_spawned_rank_is_stopped(corpus, tmp_path):  # noqa: F811
    command = corpus.train_command(tmp_path, 8, *QUIET, *SPAWNED, "--moe-timeout", "15")
    done = train_and_end(command, "1 2 SIGSTOP")
    assert done.returncode == 2 and sentences(done.stderr) == [f"moe_nmt: error: {LOST.format(15)}{WAY_OUT}"]


def test_a_mistake_of_all_spawned_ranks_is_told_once(corpus, tmp_path):  # noqa: F811
    done = train_and_end(corpus.train_command(tmp_path, 8, *QUIET, *SPAWNED), "0,1 2 UserError")
    told = [[f"moe_nmt: error: rank {rank} has had enough."] for rank in (0, 1)]
    assert done.returncode == 2 and sentences(done.stderr) in told


def test_a_bug_in_a_spawned_rank_is_one_traceback(corpus, tmp_path):  # noqa: F811
    done = train_and_end(corpus.train_command(tmp_path, 8, *QUIET, *SPAWNED), "1 2 ArithmeticError")
    assert done.returncode == 1 and done.stderr.count("Traceback") == 1
    assert sentences(done.stderr)[-1] == "ArithmeticError: rank 1 has had enough."


@pytest.mark.parametrize("ending", ["SIGKILL", "UserError"])
def test_ranks_started_one_by_one_end_together(ending, corpus, tmp_path):  # noqa: F811
    flags = ("--distributed-init-method", f"tcp://127.0.0.1:{free_port()}", *SPAWNED, "--distributed-no-spawn", *QUIET)
    script = [sys.executable, ROOT / "tests/distributed/ending.py"]
    commands = [
        [*script, *corpus.train_command(tmp_path, 8, *flags, "--distributed-rank", str(rank))[1:]] for rank in (0, 1)
    ]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ENDING": f"1 2 {ending}"}
    processes = [
        subprocess.Popen(
            [str(c) for c in command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        for command in commands
    ]
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert said[0] == f"moe_nmt: error: {LOST.format(600)}{WAY_OUT}\n"
    assert [process.returncode for process in processes] == [2, -signal.SIGKILL if ending == "SIGKILL" else 2]
    assert said[1] == ("" if ending == "SIGKILL" else "moe_nmt: error: rank 1 has had enough.\n")


def configuration(cpu: bool = False, **training) -> SimpleNamespace:
    defaults = {"distributed_world_size": 1, "device_id": 0, "tpu": False}
    training = OmegaConf.structured(DistributedTrainingConfig(**defaults | training))
    return SimpleNamespace(common=SimpleNamespace(cpu=cpu, tpu=False), distributed_training=training)


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs, as far as the launch asks for them, and no torchrun or Slurm."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in [*launch.TORCHRUN, "LOCAL_RANK", "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"]:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("cpu, backend, ddp", [(True, "gloo", "legacy_ddp"), (False, "nccl", "pytorch_ddp")])
def test_torchrun_on_several_nodes(gpus, monkeypatch, cpu, backend, ddp):
    for name, value in {"RANK": 5, "WORLD_SIZE": 6, "LOCAL_RANK": 2, "MASTER_ADDR": "a", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    cfg = configuration(cpu)
    launch.settle(cfg)
    got = cfg.distributed_training
    assert (got.distributed_init_method, got.distributed_rank, got.distributed_world_size) == ("env://", 5, 6)
    assert got.device_id == 2 and got.distributed_no_spawn
    assert (got.distributed_backend, got.ddp_backend) == (backend, ddp)


def test_torchrun_with_one_process_is_no_distributed_training(gpus, monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "a", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    cfg = configuration(distributed_world_size=2)
    launch.settle(cfg)
    assert cfg.distributed_training.distributed_init_method is None
    assert cfg.distributed_training.distributed_world_size == 1


def test_the_launcher_on_gpus_and_on_a_cpu(gpus):
    for cpu, world in ((False, 2), (True, 5)):
        cfg = configuration(cpu, distributed_world_size=world)
        launch.settle(cfg)
        assert cfg.distributed_training.distributed_init_method.startswith("tcp://localhost:")
        assert not cfg.distributed_training.distributed_no_spawn
    with pytest.raises(UserError, match=r"--distributed-world-size 3 cannot be launched here .* 2 available devices"):
        launch.settle(configuration(distributed_world_size=3))


def test_a_lone_rank_on_a_cpu_must_say_so(gpus):
    cfg = configuration(True, distributed_world_size=2, distributed_rank=1, distributed_init_method="tcp://a:1")
    with pytest.raises(UserError, match=r"--distributed-rank 1 .* add --distributed-no-spawn"):
        launch.spawn(print, cfg, {})


def test_a_timeout_must_be_some_time():
    with pytest.raises(UserError, match="--moe-timeout 0 must be more than 0 seconds"):
        launch.timeout(SimpleNamespace(task=SimpleNamespace(moe_timeout=0.0)))
    assert launch.timeout(SimpleNamespace(task=SimpleNamespace())).total_seconds() == 600


def test_a_port_in_use_is_one_sentence(corpus, tmp_path):  # noqa: F811
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        flags = ("--distributed-init-method", f"tcp://127.0.0.1:{listener.getsockname()[1]}", "--distributed-no-spawn")
        done = run(corpus.train_command(tmp_path, 2, *flags, *SPAWNED))
    assert done.returncode == 2 and "another process listens on the port of tcp://127.0.0.1:" in done.stderr
