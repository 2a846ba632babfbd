"""The programs, as a user starts them: flags, help, exit codes."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = "--config=configs/digits.py"
TINY = [
    "--config.train_steps=2",
    "--config.optimizer.warmup_steps=1",
    "--config.model.width=16",
    "--config.depth.layers=1",
    "--config.depth.share=1",
    "--config.depth.steps=2",
]


def run(module, *args):
    return subprocess.run(
        [sys.executable, "-m", module, *args], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("program") / "run"
    done = run("train", DIGITS, f"--workdir={workdir}", *TINY)
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


@pytest.mark.parametrize("module", ["train", "train.evaluate"])
def test_help(module):
    done = run(module, "--help")
    assert done.returncode == 0
    assert "--workdir" in done.stdout and f"python -m {module}" in done.stdout


def test_help_lists_the_keys_of_a_config():
    done = run("train", DIGITS, "--help")
    assert done.returncode == 0 and "depth.solver = rk4" in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([DIGITS, "--config.depth.solvr=rk4"], "Did you mean 'depth.solver'"),
        ([DIGITS, "--config.depth.solver=rk5"], "unknown solver 'rk5'"),
        (
            [DIGITS, "--config.depth.rtol=tiny"],
            "config.depth.rtol=tiny: could not convert string to float",
        ),
        ([DIGITS, "--wrkdir=x"], "Did you mean '--workdir'"),
        (["--config=configs/digit.py"], "configs/digit.py is not a file"),
        ([], "--config is missing"),
    ],
)
def test_bad_input_is_told_in_a_line(tmp_path, args, message):
    done = run("train", f"--workdir={tmp_path}/run", *args)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
