"""The project's own files."""

import doctest
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import warnings

import numpy as np
import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from PIL import Image

import odeformer
from odeformer import presets, solvers
from tests.helpers.checkout import ROOT, code_block
from train.config.data import ImageDataConfig
from train.data.images.prepared import load as load_images
from train.study.grid import from_study_dict

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


def test_quick_runs_the_models_and_a_run_that_learns(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    (tmp_path / ".stamp").touch()
    command = make("--dry-run", "quick", f"VENV={tmp_path}").stdout
    arguments = command.replace("\\\n", " ").partition("--dist loadfile")[2].split()
    named = [argument for argument in arguments if not argument.startswith("--")]

    left_out = re.findall("--ignore-glob='(.*?)'", command)
    assert left_out and all(list((ROOT / "tests").glob(f"*{pattern}")) for pattern in left_out)
    rooms = {f"tests/{room}" for room in ("ode", "transformer", "models")}
    assert set(named) == rooms | {"tests/train/test_learns.py"}
    assert all((ROOT / path).exists() for path in named)


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
    assert len(named) > 5 and all((ROOT / path).exists() for path in named)


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


def test_readme_is_a_screen_and_a_half():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_readme_names_every_solver_and_preset():
    text = (ROOT / "README.md").read_text()
    for name in (*solvers.NAMES, *presets.VIT_NAMES, *presets.LM_NAMES, *presets.TEXT_NAMES):
        assert f"`{name}`" in text, name


@pytest.mark.slow
def test_readme_code_runs():
    """The library's example, as a reader would paste it."""
    scope: dict = {}
    exec(code_block("README.md"), scope)
    assert scope["logits"].shape == (8, 10) and scope["solution"].result == 0


def test_trained_model_example_runs(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/x").symlink_to(ROOT / "tests/data/workdir_0")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(code_block("docs/training.md"), scope)
    assert scope["model"].config.depth.solver == "heun" and "params" in scope["variables"]


def test_builder_example_makes_a_set_that_is_read(tmp_path, monkeypatch):
    for number in range(20):
        path = tmp_path / "photos" / ("dog" if number % 2 else "cat") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 24), (number, 0, 0)).save(path)
    (tmp_path / "photos" / ".DS_Store").touch()
    monkeypatch.chdir(tmp_path)

    example = code_block("docs/own-data.md")
    assert len([line for line in example.splitlines() if line]) <= 25
    exec(example, {"__name__": "__main__"})

    data = ImageDataConfig("photos", "data", test_fraction=0.1, validation_examples=3)
    splits = load_images(data, image_size=(16, 16))
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [15, 3, 2]
    batch = splits["train"].gather(np.arange(15))
    # The first pixel of a file is its number, and the number's parity its class.
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0] % 2, batch["label"])


def test_study_example_is_accepted():
    """One row of it, and the row of the same cost: each row takes a second to trace."""
    scope: dict = {}
    exec(code_block("docs/studies.md"), scope)
    study = scope["get_config"]()
    study.grid.depth = {"share": (1,), "solver": ("rk4",)}
    study.contrasts = None
    rows = from_study_dict(study).rows
    assert [row.name for row in rows] == ["rk4, share 1", "euler, share 1, steps 4"]


def test_a_project_of_the_same_name_is_warned_about(tmp_path, monkeypatch):
    """Only where it is installed: what is this project's own is 'odeformer-jax'."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(odeformer)

    metadata = tmp_path / "odeformer-0.1.7.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: odeformer\nVersion: 0.1.7\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(UserWarning, match=f"another \\(odeformer, in {tmp_path}\\).*uninstall both"):
        importlib.reload(odeformer)


MODULES = [f"models.{name}" for name in ("flops", "generate", "lm", "presets", "text", "vit")]
ANALYSIS = ("analysis.oversmoothing", "analysis.trajectories")


@pytest.mark.parametrize("name", [*MODULES, "ode.integrate", "transformer.sharding", *ANALYSIS])
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(f"odeformer.{name}"))
    assert result.attempted > 0 and result.failed == 0
