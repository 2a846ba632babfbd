"""The project's own files."""

import doctest
import importlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement

from odeformer import presets, solvers

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEPENDENCIES = [
    Requirement(line)
    for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for line in lines
]
PYTHONS = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))


MAKES = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "LATEST")


def make(*arguments, **env):
    """Runs make as from a shell, whatever make these tests were started by."""
    kept = {name: os.environ[name] for name in os.environ if name not in MAKES}
    command = [shutil.which("make"), *arguments]
    return subprocess.run(command, cwd=ROOT, env=kept | env, capture_output=True, text=True)


def test_dependencies_have_lower_bounds_alone():
    for dependency in DEPENDENCIES:
        assert [bound.operator for bound in dependency.specifier] == [">="], dependency


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_holds_one_version_of_every_dependency(python):
    """To renew it: `make lock`. Lines that are no requirement (an index's, say) fail to parse."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    here = default_environment() | {"python_version": python, "python_full_version": f"{python}.9"}

    for dependency in DEPENDENCIES:
        name = dependency.name.lower().replace("_", "-")
        found = [p for p in pins if p.name == name and (not p.marker or p.marker.evaluate(here))]
        assert len(found) == 1, dependency
        ((pin,),) = [pin.specifier for pin in found]
        assert pin.operator == "==" and dependency.specifier.contains(pin.version), dependency


def test_the_lock_names_no_index():
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"://|@ |^\s*-|index-url", text, flags=re.MULTILINE)


def test_every_target_is_listed():
    text = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)", text, flags=re.MULTILINE)
    listed = [line.split()[0] for line in make("help").stdout.splitlines()]
    assert sorted(listed) == sorted(phony.replace("\\", "").split())

    for path in (".ci/run", ".github/workflows/test.yml"):
        started = re.findall(r"\bmake ([a-z-]+)", (ROOT / path).read_text())
        assert started and set(started) <= set(listed), path


def test_changing_from_locked_to_newest_versions_installs_again(tmp_path):
    (tmp_path / ".stamp").touch()
    assert make("--question", "setup", f"VENV={tmp_path}").returncode == 0
    assert make("--question", "setup", f"VENV={tmp_path}", "LATEST=1").returncode == 1

    locked = make("--dry-run", "setup", f"VENV={tmp_path / 'other'}").stdout
    latest = make("--dry-run", "setup", f"VENV={tmp_path}", "LATEST=1").stdout
    assert "--constraint constraints.txt" in locked and "--upgrade" not in locked
    assert "--constraint" not in latest and "--upgrade" in latest
    # The stamp of the one goes before the other is installed.
    assert latest.index(f"rm -f {tmp_path}/.stamp*") < latest.index("--editable")


def test_newest_versions_are_not_linted():
    tools = ("ruff check", "basedpyright")
    assert all(tool in make("--dry-run", "test").stdout for tool in tools)
    assert not any(tool in make("--dry-run", "test", "LATEST=1").stdout for tool in tools)


def test_compat_takes_a_newer_python_where_there_is_one(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    (tmp_path / ".stamp").touch()
    arguments = ("test-compat", f"VENV={tmp_path}", "PYENV=/nowhere")

    alone = make(*arguments, PATH=str(tmp_path))
    assert alone.returncode == 0
    assert re.fullmatch("No Python newer than .* nothing to test\n", alone.stdout)

    # Stands for one on the PATH: all that is asked of it is whether it is recent enough.
    (tmp_path / "python3.12").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "python3.12").chmod(0o755)
    found = make("--dry-run", *arguments, PATH=str(tmp_path)).stdout
    assert ".venv/compat/bin/python -m pytest" in found and "basedpyright" in found

    named = re.search("--dist loadfile (.*)", found).group(1).split()
    assert len(named) > 5 and all((ROOT / path).is_file() for path in named)


def test_the_workflow_runs_every_python_locked_and_newest():
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"] == {
        "python": PYTHONS,
        "versions": ["locked", "newest"],
    }
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"


def test_the_repository_has_one_address():
    """pyproject.toml holds it; the notebooks, which install from it, agree."""
    address = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")
    for path in (ROOT / "colabs").glob("*.ipynb"):
        text = path.read_text()
        found = set(re.findall(r"github(?:\.com)?/([\w.-]+/odeformer)\b", text))
        assert found == {address}, path


def test_no_file_is_long():
    for folder in ("odeformer", "train", "configs", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, path


def test_readme_names_every_solver_and_preset():
    text = (ROOT / "README.md").read_text()
    for name in (*solvers.NAMES, *presets.VIT_NAMES, *presets.LM_NAMES, *presets.TEXT_NAMES):
        assert f"`{name}`" in text, name


@pytest.mark.slow
def test_readme_code_runs():
    """The library's examples, as a reader would paste them."""
    text = (ROOT / "README.md").read_text()
    images, texts = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[:2]
    scope: dict = {}
    exec(images, scope)
    assert scope["logits"].shape == (8, 10) and scope["solution"].result == 0
    scope = {}
    exec(texts, scope)
    assert scope["logits"].shape == (1, 5, 257) and scope["classes"].shape == (1, 2)
    assert [len(tokens) for tokens in scope["texts"]] == [8, 8]


MODULES = [f"models.{name}" for name in ("flops", "generate", "lm", "presets", "text", "vit")]


@pytest.mark.parametrize("name", [*MODULES, "ode.integrate", "transformer.sharding"])
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(f"odeformer.{name}"))
    assert result.attempted > 0 and result.failed == 0
