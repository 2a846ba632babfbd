"""The programs, as a user starts them: flags, help, exit codes."""

import subprocess
import sys

import pytest

from tests.helpers.checkout import ROOT
from tests.helpers.programs import run

DIGITS = "--config=configs/digits.py"
TINY = [
    "--config.train_steps=2",
    "--config.optimizer.warmup_steps=1",
    "--config.model.width=16",
    "--config.depth.layers=1",
    "--config.depth.share=1",
    "--config.depth.steps=2",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("program") / "run"
    done = run("train.__main__", DIGITS, f"--workdir={workdir}", *TINY)
    assert done.returncode == 0, done.stderr
    assert "step      1/2" in done.stdout and "test  loss" in done.stdout
    return workdir


def test_evaluate_under_another_solver(trained):
    done = run(
        "train.evaluate",
        f"--workdir={trained}",
        "--config.depth.solver=tsit5",
        "--config.depth.rtol=1e-3",
    )
    assert done.returncode == 0, done.stderr
    assert "tsit5" in done.stdout and "rtol 0.001" in done.stdout


def test_evaluate_compares_solvers(trained):
    done = run(
        "train.evaluate", f"--workdir={trained}", "--solvers=euler,bosh3", "--split=validation"
    )
    assert done.returncode == 0, done.stderr
    assert "euler" in done.stdout and done.stdout.count("bosh3") == 2


def test_help():
    done = run("train.__main__", DIGITS, "--help")
    assert done.returncode == 0
    for text in (
        "--workdir",
        "python -m train --config=",
        "--config.depth.solver=str",
        "Here: rk4.",
    ):
        assert text in done.stdout


def test_bad_input_is_told_in_a_line(tmp_path):
    """In a process of its own, whose exit code is the program's."""
    command = [sys.executable, "-m", "train", f"--workdir={tmp_path}/run", DIGITS]
    command.append("--config.depth.solver=rk5")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    began, error = done.stderr.split("\n", 1)
    assert began == "importing JAX and the trainer ..."
    assert error.startswith("error: config.depth: unknown solver 'rk5'")
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


def test_bad_input_of_evaluate(trained, tmp_path):
    missing = run("train.evaluate", f"--workdir={tmp_path}/none")
    assert missing.returncode == 2 and "holds no run" in missing.stderr
    wrong = run("train.evaluate", f"--workdir={trained}", "--solvers=rk5")
    assert wrong.returncode == 2 and "Did you mean 'rk4'" in wrong.stderr
