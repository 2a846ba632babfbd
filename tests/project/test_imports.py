"""The import rule: a row imports lower rows only, and inside a folder imports have no cycle."""

import ast
import graphlib
import importlib
import subprocess
import sys

import pytest

import odeformer
from tests.helpers.checkout import ROOT

# From the lowest row to the highest; an entry stands for a module, or for a folder and all in it.
ROWS = [
    "odeformer.errors",
    "odeformer.checks",
    "odeformer.ode",
    "odeformer.transformer",
    "odeformer.models",
    "odeformer.interop odeformer.analysis",
    "odeformer",
    "train.errors",
    "train.files train.signals train.startup",
    "train.config",
    "train.command_line train.checks train.devices train.data train.augment train.optimizer",
    "train.adapters",
    "train.tasks train.state train.prepare",
    "train.logs train.checkpoint train.gradient",
    "train.step train.refinement",
    "train.scores train.aot train.inspect train.generate train.predict train.export",
    "train.evaluate train.programs",
    "train.run",
    "train.divergence",
    "train.loop",
    "train.study train.project train.__main__",
]
ENTRIES = {entry: row for row, entries in enumerate(ROWS) for entry in entries.split()}
PACKAGES = ("odeformer", "train")
ROOMS = ("interop", "analysis")


def modules():
    """Every module of the house, and its file."""
    for folder in PACKAGES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


MODULES = dict(modules())


def entry(module):
    """The entry that a module belongs to: the longest one that it is, or lies in."""
    found = [e for e in ENTRIES if module == e or (module.startswith(f"{e}.") and e != "odeformer")]
    return max(found, key=len, default=None)


def imports(path):
    """Every module that a file imports, the most specific name of each."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def test_every_module_has_a_row():
    """But for the package `train` itself, which holds nothing."""
    assert {name for name in MODULES if entry(name) is None} == {"train"}


@pytest.mark.parametrize(("name", "path"), modules())
def test_imports_go_down(name, path):
    for imported in imports(path):
        if imported.split(".")[0] in PACKAGES:
            here, there = entry(name), entry(imported)
            assert here == there or ENTRIES[there] < ENTRIES[here], f"{name} imports {imported}"
        else:
            assert imported.split(".")[0] not in ("benchmarks", "configs", "tests")


def test_imports_have_no_cycle():
    """Inside a folder the order is free; a cycle raises CycleError, which names it."""
    graph = {name: {i for i in imports(path) if i in MODULES} for name, path in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()


def test_imports_are_absolute():
    """A relative one names no module of the house, so that no row would hold it."""
    relative = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_the_library_needs_only_its_core():
    allowed = {"jax", "flax", "diffrax", "chex", "numpy", "odeformer", *sys.stdlib_module_names}
    for name, path in MODULES.items():
        if name.startswith("odeformer"):
            assert {module.split(".")[0] for module in imports(path)} <= allowed, name


def test_ode_knows_no_transformer_no_flax_and_no_mesh():
    """But for one place, which asks whether it stands inside shard_map."""
    for name, path in MODULES.items():
        if name.startswith("odeformer.ode"):
            assert not any(module.split(".")[0] == "flax" for module in imports(path)), name
    meshes = [
        n for n, p in MODULES.items() if n.startswith("odeformer.ode") and "mesh" in p.read_text()
    ]
    assert meshes == ["odeformer.ode.diffeqsolve"]


def test_ode_alone_imports_diffrax():
    users = {
        n for n, path in MODULES.items() if any(m.startswith("diffrax") for m in imports(path))
    }
    assert {name.rpartition(".")[0] for name in users} == {"odeformer.ode"}


def test_the_trainer_imports_public_names_alone():
    """From `odeformer` what is in its `__all__`, and from a module that is in it."""
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if not name.startswith("train") or not isinstance(node, ast.ImportFrom):
                continue

            package, _, module = (node.module or "").partition(".")
            if package == "odeformer":
                names = {alias.name for alias in node.names}

                # Rooms that `import odeformer` leaves out have public names of their own.
                room = importlib.import_module(node.module) if module in ROOMS else odeformer
                used = {module} if module and module not in ROOMS else names
                assert used <= set(room.__all__), f"{name} imports {used} of odeformer"


def test_importing_the_library_loads_no_part_of_the_trainer():
    """A whole import in a fresh interpreter; train's own dependencies stay unloaded."""
    extras = (
        "odeformer.analysis",
        "odeformer.interop",
        "safetensors",
        "orbax.checkpoint",
        "grain",
        "ml_collections",
        "matplotlib",
        "sklearn",
        "tokenizers",
    )
    code = f"import sys, odeformer; print([name for name in {extras!r} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == []
