"""The list of bugs that are put in on purpose: it fits the code, and its runner tells the truth."""

import ast
import dataclasses
import pathlib
import shutil
import subprocess
import sys

import pytest

from benchmarks import mutate
from tests.helpers.checkout import ROOT

LISTED = mutate.read_mutants()
# Where a mistake would change numbers, and nobody might see it. A new file of these needs mutants,
# or a place among those that hold checks, names, words and glue.
DECIDING = ("odeformer/ode", "odeformer/transformer", "odeformer/models", "train/augment")
DECIDING += ("train/tasks", "train/data/pipeline.py", "train/data/cuts.py", "train/step.py")
DECIDING += ("train/state.py", "train/optimizer.py", "train/divergence.py", "train/run.py")
DECIDING += ("train/checkpoint/checksums.py", "train/checkpoint/restore.py")
DECIDING += ("train/checkpoint/retention.py", "train/study/grid.py", "train/study/intervals.py")
DECIDING += ("train/study/contrasts.py", "train/study/tuning.py")
WITHOUT = {
    *("odeformer/ode/derivatives.py", "odeformer/ode/problem.py"),
    *("odeformer/models/config.py", "odeformer/models/flops.py", "odeformer/models/presets.py"),
    *("odeformer/models/generate.py", "odeformer/models/registry.py"),
    *(f"odeformer/transformer/{name}.py" for name in ("config", "counts", "module", "state")),
    *("train/augment/operations.py", "train/tasks/measured.py"),
}


@pytest.mark.parametrize("mutant", LISTED, ids=lambda mutant: mutant.why)
def test_each_mutant_fits_the_code(mutant):
    source = (ROOT / mutant.file).read_text()
    assert ast.dump(ast.parse(mutant.applied(source))) != ast.dump(ast.parse(source))
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert (ROOT / file).is_file() and f"def {name}" in (ROOT / file).read_text(), test


def test_every_deciding_file_has_mutants():
    files = set()
    for place in DECIDING:
        path = ROOT / place
        found = path.glob("*.py") if path.is_dir() else [path]
        files |= {str(file.relative_to(ROOT)) for file in found}
    files = {file for file in files if not file.endswith(("__init__.py", "checks.py"))}
    assert files - {mutant.file for mutant in LISTED} == WITHOUT


def test_a_text_that_is_not_there_once_is_refused():
    mutant = dataclasses.replace(LISTED[0], text="no such text")
    with pytest.raises(ValueError, match=r"holds 'no such text' 0 times.*renew it in tests/mut"):
        mutant.applied("")


@pytest.fixture
def checkout(tmp_path):
    """A module, and a test of one of its two functions."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "ours.py").write_text(
        "def double(x):\n    return 2 * x\n\n\ndef half(x): return x / 2\n"
    )
    (folder / "test_ours.py").write_text(
        "from ours import double\n\n\ndef test_double():\n    assert double(2) == 4\n"
    )
    return folder


def test_what_becomes_of_mutants(checkout):
    """Killed, survived, and one that cannot be imported; the copy is left as it was."""
    make = lambda text, replacement: mutate.Mutant(
        "ours.py", text, replacement, why="", tests=("test_ours.py",)
    )
    mutants = [make("2 * x", "3 * x"), make("x / 2", "x / 3"), make("2 * x", "double(")]
    before = (checkout / "ours.py").read_text()
    results = [result for _, result, _ in mutate.try_mutants(mutants, checkout)]
    assert results == [mutate.KILLED, mutate.SURVIVED, mutate.KILLED]
    assert (checkout / "ours.py").read_text() == before


def test_a_mutant_that_never_ends_is_stopped(checkout, monkeypatch):
    monkeypatch.setattr(mutate, "LIMIT_CPU_SECS", 2)
    (checkout / "ours.py").write_text("def double(x):\n    while True: pass\n")
    assert mutate.run_tests(checkout, ["test_ours.py"])[0] == mutate.STOPPED


def test_tests_that_fail_without_a_mutant_are_refused(checkout):
    (checkout / "test_ours.py").write_text("def test_nothing():\n    assert False\n")
    mutant = mutate.Mutant("ours.py", "2 * x", "3 * x", why="", tests=("test_ours.py",))
    with pytest.raises(RuntimeError, match=r"without a mutant .*test_ours\.py.* fail"):
        list(mutate.try_mutants([mutant], checkout))
    nowhere = dataclasses.replace(mutant, tests=("test_nowhere.py",))
    with pytest.raises(RuntimeError, match=r"without a mutant .*test_nowhere\.py.* fail"):
        list(mutate.try_mutants([nowhere], checkout))


def test_a_copy_holds_what_git_would(tmp_path):
    root, copy = tmp_path / "root", tmp_path / "copy"
    root.mkdir()
    git = shutil.which("git")
    assert git is not None
    subprocess.run([git, "init", "-q"], cwd=root, check=True)
    for name in ("kept.py", "left.log", ".gitignore"):
        (root / name).write_text("*.log\n")
    mutate.copy_checkout(copy, root)
    assert sorted(path.name for path in copy.iterdir()) == [".gitignore", "kept.py"]


def test_the_list_is_printed():
    command = [sys.executable, "-m", "benchmarks.mutate", "--list", "train/state.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.count("train/state.py: ") == done.stdout.count("\n") >= 3

    done = subprocess.run([*command[:-1], "x.py"], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 2 and b"no mutant of x.py stands in tests/mutants/" in done.stderr
    assert pathlib.Path(mutate.MUTANTS).is_dir()
