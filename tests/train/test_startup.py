"""The first line of a program: soon, on standard error, and from the first process alone."""

import subprocess
import sys
import time

import pytest

from tests.helpers.checkout import ROOT
from train import startup
from train.devices.cluster import is_first

PROGRAMS = (
    "train",
    "evaluate",
    "predict",
    "generate",
    "inspect",
    "project",
    "aot",
    "export",
    "prepare",
    "study",
)
FIRST = "importing JAX and the trainer ...\n"


def start_program(name, *arguments):
    module = name if name == "train" else f"train.{name}"
    command = [sys.executable, "-m", module, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_first_line_comes_within_three_seconds(name):
    began = time.monotonic()
    with start_program(name) as process:
        assert process.stderr.readline() == FIRST
        assert time.monotonic() - began < 3
        process.kill()


def test_every_program_is_tested():
    modules = [p for p in ROOT.glob("train/**/*.py") if '__name__ == "__main__"' in p.read_text()]
    names = {p.parent.name if p.stem == "__main__" else p.stem for p in modules}
    assert names == set(PROGRAMS)


def test_nothing_is_noted_for_help_nor_by_a_later_process():
    code = "import sys; sys.argv = {}; from train import startup; startup.announce({}, {});"
    code += "startup.note('reading'); startup.report_as(True); startup.note('compiling')"

    def said(arguments, name="__main__", is_first=True):
        command = [sys.executable, "-c", code.format(arguments, repr(name), is_first)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout, done.stderr

    assert said(["train"]) == ("", f"{FIRST}reading ...\ncompiling ...\n")
    assert said(["train", "--help"]) == ("", "")
    assert said(["train"], name="train.evaluate") == ("", "")
    # What the flags do not say is known later: then the first process begins to report.
    assert said(["train"], is_first=False) == ("", "compiling ...\n")


def test_a_program_in_a_notebook_notes_nothing(capsys):
    """Where JAX is loaded already there is nothing to wait for."""
    startup.announce("__main__")
    startup.note("reading")
    assert capsys.readouterr() == ("", "")


GROUP = ("--coordinator=h:1", "--num_processes", "2")
SLURM = dict(SLURM_JOB_ID="1", SLURM_STEP_NODELIST="a", SLURM_NTASKS="2", SLURM_LOCALID="0")


@pytest.mark.parametrize(
    ("arguments", "environ", "expected"),
    [
        ((), {}, True),
        ((*GROUP, "--process_id=0"), {}, True),
        ((*GROUP, "--process_id", "1"), {}, False),
        ((*GROUP,), {}, False),  # which is refused
        ((*GROUP, "--process_id=x"), {}, False),
        (("--coordinator=auto",), {}, False),  # only jax finds out
        ((), SLURM | {"SLURM_PROCID": "0"}, True),
        ((), SLURM | {"SLURM_PROCID": "1"}, False),
        ((), {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, False),
    ],
)
def test_which_process_is_the_first(arguments, environ, expected):
    assert is_first(["train", *arguments], environ) is expected
