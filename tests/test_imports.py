"""The floors of the house: every import goes to a lower one."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FLOORS = [
    {"odeformer.errors", "odeformer.grid", "odeformer.problem"},
    {"odeformer.derivatives", "odeformer.ends", "odeformer.sharding", "odeformer.solvers"},
    {"odeformer.layers"},
    {"odeformer.attention", "odeformer.checks", "odeformer.diffeqsolve"},
    {"odeformer.integrate"},
    {"odeformer.fields"},
    {"odeformer.depth"},
    {"odeformer.tokens", "odeformer.vit"},
    {"odeformer.lm", "odeformer.text"},
    {"odeformer.decoding", "odeformer.models", "odeformer.presets"},
    {"odeformer.flops", "odeformer.generate"},
    {"odeformer"},
    {
        "train",
        "train.chips",
        "train.data",
        "train.data.config",
        "train.data.cuts",
        "train.data.pixels",
        "train.errors",
        "train.signals",
    },
    {"train.files", "train.ranges"},
    {"train.stored_config"},
    {
        "train.compiled",
        "train.config",
        "train.data.arrays",
        "train.data.text",
        "train.events",
        "train.processes",
        "train.profile",
        "train.statistics",
        "train.topologies",
    },
    {
        "train.augment",
        "train.augment.boxes",
        "train.data.archive",
        "train.data.stream",
        "train.data.tfds_sets",
        "train.data.text.files",
        "train.data.text.packing",
        "train.data.text.tokenizer",
        "train.overrides",
    },
    {
        "train.augment.erasing",
        "train.augment.geometry",
        "train.augment.mixing",
        "train.data.text.blocks",
        "train.data.text.documents",
    },
    {"train.augment.operations", "train.data.text.sources"},
    {"train.augment.randaugment"},
    {
        "train.losses",
        "train.metrics",
        "train.optimizer",
        "train.mesh",
        "train.progress",
        "train.spikes",
        "train.stored",
        "train.workdir",
        "train.command_line",
        "train.augment.pipeline",
        "train.data.cifar",
        "train.data.digits",
        "train.data.mnist",
        "train.data.shakespeare",
        "train.data.pipeline",
        "train.data.tfds_images",
        "train.tasks.task",
    },
    {
        "train.checksums",
        "train.plots",
        "train.state",
        "train.throughput",
        "train.data.sources",
        "train.tasks.images",
        "train.tasks.language",
        "train.tasks.sentences",
    },
    {"train.tasks", "train.data.blank", "train.gradient", "train.record"},
    {"train.step", "train.checkpoint"},
    {"train.divergence", "train.evaluate", "train.health", "train.saver", "train.studies"},
    {"train.loop", "train.report"},
    {
        "train.__main__",
        "train.aot",
        "train.generate",
        "train.inspect",
        "train.prepare",
        "train.study",
    },
]
FLOOR = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}


def modules():
    for folder in ("odeformer", "train"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def imports(path):
    """Every module of the house that a file imports, the most specific name of each."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in FLOOR else node.module


def test_every_module_has_a_floor():
    assert {name for name, _ in modules()} == set(FLOOR)


@pytest.mark.parametrize(("name", "path"), modules())
def test_imports_go_down(name, path):
    for imported in imports(path):
        if imported in FLOOR:
            assert FLOOR[imported] < FLOOR[name], f"{name} imports {imported}"
        else:
            assert imported.split(".")[0] not in ("odeformer", "train", "configs", "tests")


def test_imports_are_absolute():
    """A relative one names no module of the house, so that no floor would hold it."""
    relative = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for _, path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_the_library_needs_only_its_core():
    allowed = {"jax", "flax", "diffrax", "chex", "numpy", "odeformer", *sys.stdlib_module_names}
    for name, path in modules():
        if name.startswith("odeformer"):
            assert {module.split(".")[0] for module in imports(path)} <= allowed, name


def test_solvers_and_diffeqsolve_alone_import_diffrax():
    users = {
        name for name, path in modules() if any(m.startswith("diffrax") for m in imports(path))
    }
    assert users == {"odeformer.solvers", "odeformer.diffeqsolve"}


def test_importing_the_library_loads_no_part_of_the_trainer():
    """A whole import in a fresh interpreter; train's own dependencies stay unloaded."""
    extras = ("orbax.checkpoint", "grain", "ml_collections", "matplotlib", "sklearn", "tokenizers")
    code = f"import sys, odeformer; print([name for name in {extras!r} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == []
