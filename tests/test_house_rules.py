"""The rules of the house that no other test would notice: who may import whom, and what must not drift."""

import ast
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from moe_nmt.evaluation.scalars import scalars_table
from moe_nmt.methods import methods_table

ROOT = Path(__file__).resolve().parents[1]

PACKAGE_FLOORS = [
    {"errors", "memory"},
    {"registry", "data"},
    {"schedules", "distributed", "evaluation"},
    {"moe"},
    {"adapters", "training"},
    {"surgery", "inference"},
    {"fairseq_plugin", "methods"},
    {"__main__"},
]
CORE_FLOORS = [
    {"routing", "activations", "grouped_linear", "initialization", "kernels", "linear"},
    {"feed_forward"},
    {"routers", "experts", "regularizers", "branches", "losses"},
    {"dispatch"},
    {"layer"},
    {"recording", "parameters"},
]
"""From the ground up: a module imports from lower floors only, and from itself."""

MAY_IMPORT_FAIRSEQ = {"moe_nmt.fairseq_plugin", "moe_nmt.__main__", "data_prep.binarize"}
DATA_PREP_MAY_USE = {
    *("moe_nmt.data", "moe_nmt.errors", "moe_nmt.registry", "data_prep"),
    *("moe_nmt.evaluation.layout", "moe_nmt.evaluation.plots", "moe_nmt.evaluation.results"),
}
WITHOUT_TORCH = {"moe_nmt.data", "moe_nmt.evaluation", "moe_nmt.errors", "moe_nmt.registry", "moe_nmt.schedules"}
TEXT = {".py", ".md", ".toml", ".sh", ".yaml", ".yml", ".json", ".jsonl", ".cfg", ".ini", ".txt", ".tsv", ".svg", ""}
GENERATED = {"__pycache__", "build", "dist", "runs"}


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): path for path in chain(*((ROOT / top).rglob("*.py") for top in ("moe_nmt", "data_prep")))}


def imports_in(tree, package=""):
    """The absolute names of all that is imported by a module of `package`, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            source = ".".join([*above, node.module] if node.module else above)
            names = (f"{source}.{alias.name}" for alias in node.names)
            yield from (name if name in SOURCES else source for name in names)


def is_in(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def imports_of(module):
    path = SOURCES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return set(imports_in(ast.parse(path.read_text(encoding="utf-8")), package))


def member(name, package):
    """`moe` for `moe_nmt.moe.layer` in `moe_nmt`; None for the package itself and for what lies outside."""
    return name.removeprefix(f"{package}.").split(".")[0] if name.startswith(f"{package}.") else None


def violations(package, floors):
    floor_of = {name: floor for floor, names in enumerate(floors) for name in names}
    for module in SOURCES:
        importer = member(module, package)
        if importer is None:
            continue
        if importer not in floor_of:
            yield f"{module}: say on which floor of {package} it lies"
            continue
        for name in imports_of(module):
            imported = package if name == package else member(name, package)
            higher = imported is not None and floor_of.get(imported, len(floors)) >= floor_of[importer]
            if higher and imported != importer:
                yield f"{module} imports {name}"


@pytest.mark.parametrize(("package", "floors"), [("moe_nmt", PACKAGE_FLOORS), ("moe_nmt.moe", CORE_FLOORS)])
def test_imports_point_downwards(package, floors):
    assert list(violations(package, floors)) == []


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("import moe_nmt.moe.layer", {"moe_nmt.moe.layer"}),
        ("from moe_nmt.moe import layer, ROUTERS", {"moe_nmt.moe.layer", "moe_nmt.moe"}),
        ("def f():\n    from moe_nmt import moe", {"moe_nmt.moe"}),
        ("if True:\n    import fairseq.data as data, os", {"fairseq.data", "os"}),
        ("from . import layer", {"moe_nmt.moe.layer"}),
        ("from .routing import keep", {"moe_nmt.moe.routing"}),
        ("from ..schedules import at_step", {"moe_nmt.schedules"}),
    ],
)
def test_every_way_of_importing_is_seen(line, names):
    assert set(imports_in(ast.parse(line), "moe_nmt.moe")) == names


def test_the_package_itself_imports_only_the_plugin():
    assert {name for name in imports_of("moe_nmt") if is_in(name, {"moe_nmt", "fairseq"})} == {"moe_nmt.fairseq_plugin"}


def test_only_the_plugin_and_the_commands_import_fairseq():
    importers = {m for m in SOURCES if any(is_in(name, {"fairseq", "fairseq_cli"}) for name in imports_of(m))}
    assert {module for module in importers if not is_in(module, MAY_IMPORT_FAIRSEQ)} == set()


def test_data_preparation_uses_little_of_the_package():
    ours = {(m, name) for m in SOURCES if is_in(m, {"data_prep"}) for name in imports_of(m)}
    ours = {(module, name) for module, name in ours if is_in(name, {"moe_nmt", "data_prep"})}
    assert {(module, name) for module, name in ours if not is_in(name, DATA_PREP_MAY_USE)} == set()


def test_what_is_meant_to_do_without_torch_does():
    importers = {m for m in SOURCES if is_in(m, WITHOUT_TORCH) and any(is_in(n, {"torch"}) for n in imports_of(m))}
    assert importers == set()


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("moe_nmt.moe", "fairseq"),
        ("moe_nmt.data", "torch"),
        ("moe_nmt.evaluation.cli", "torch"),
        ("moe_nmt.evaluation.cli", "fairseq"),
        ("moe_nmt.__main__", "torch"),
    ],
)
def test_an_import_pulls_in_no_more_than_it_needs(module, absent):
    code = f"import sys, {module}; sys.exit({absent!r} in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr or f"{module} pulls in {absent}"


@pytest.mark.parametrize(("name", "table"), [("methods", methods_table), ("scalars", scalars_table)])
def test_the_readme_holds_the_generated_tables(name, table):
    begin, end = f"<!-- {name} table: begin -->", f"<!-- {name} table: end -->"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert begin in text and end in text, f"README.md needs a table between {begin} and {end}"
    written = text.partition(begin)[2].partition(end)[0].strip()
    assert written == table(), "run python scripts/update_readme.py"


def text_files():
    for path in ROOT.rglob("*"):
        folders = path.relative_to(ROOT).parts[:-1]
        generated = any(f in GENERATED or f.endswith(".egg-info") or (f[0] == "." and f != ".ci") for f in folders)
        if path.is_file() and not generated and path.suffix in TEXT:
            yield path


def test_no_file_names_a_folder_of_somebodys_machine():
    folders = [f"/{name}/" for name in ("work", "home", "root", "Users", "mnt")]
    found = {
        f"{path.relative_to(ROOT)}: {folder}"
        for path in text_files()
        for folder in folders
        if folder in path.read_text(encoding="utf-8", errors="replace")
    }
    assert found == set()
