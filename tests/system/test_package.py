"""The built wheel holds everything and works away from the clone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "moe_nmt", folder / "clone/moe_nmt", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("MANIFEST.in", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "clone")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", folder, folder / "clone"], check=True, capture_output=True)
    (wheel,) = folder.glob("moe_nmt-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def python(unpacked: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", *arguments]
    return subprocess.run(command, cwd=unpacked.parent, env=environment, capture_output=True, text=True)


def test_the_wheel_holds_every_module_and_nothing_else(unpacked):
    built = {str(path.relative_to(unpacked)) for path in (unpacked / "moe_nmt").rglob("*") if path.is_file()}
    sources = [path for path in (ROOT / "moe_nmt").rglob("*") if path.suffix == ".py" or path.name == "py.typed"]
    compiled = {"moe_nmt/moe/_kernels.so"}
    assert built == {str(path.relative_to(ROOT)) for path in sources} | compiled
    assert {path.name for path in unpacked.iterdir() if path.suffix != ".dist-info"} == {"moe_nmt"}


def test_the_wheel_names_its_license_and_command(unpacked):
    (info,) = unpacked.glob("*.dist-info")
    assert "moe-nmt = moe_nmt.__main__:main" in (info / "entry_points.txt").read_text()
    assert "MIT License" in next(info.rglob("LICENSE")).read_text()
    metadata = (info / "METADATA").read_text()
    assert "License: MIT" in metadata and "Provides-Extra: fastbpe" in metadata


def test_the_command_works_from_the_wheel(unpacked):
    done = python(unpacked, "-m", "moe_nmt", "methods")
    assert done.returncode == 0 and "| `--moe-router` | `top_k(" in done.stdout
    where = python(unpacked, "-c", "import moe_nmt; print(moe_nmt.__file__)").stdout
    assert where.startswith(str(unpacked))


def test_the_core_works_from_the_wheel_without_fairseq(unpacked):
    code = """import sys
from moe_nmt.moe import ROUTERS, kernels
print(*ROUTERS.entries(), kernels.LOADED, "fairseq" in sys.modules)"""
    assert python(unpacked, "-c", code).stdout.split() == ["bilevel", "top_k", "True", "False"]


@pytest.mark.parametrize("content", [None, b"rubbish"])
def test_compiled_operators_that_do_not_load_are_done_without(unpacked, tmp_path, content):
    site = tmp_path / "site"
    shutil.copytree(unpacked, site)
    library = site / "moe_nmt/moe/_kernels.so"
    library.unlink()
    if content is not None:
        library.write_bytes(content)
    assert python(site, "-c", "from moe_nmt.moe import kernels; print(kernels.LOADED)").stdout.split() == ["False"]
