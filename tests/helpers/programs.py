"""Programs and runs in this process, and what they leave."""

import copy
import functools
import io
import runpy
import subprocess
import sys
import warnings

import pytest

from train.scores import score


def start(monkeypatch, module, *arguments):
    """Runs a program's main in this process, on flags that no other start has parsed."""
    monkeypatch.setattr(module, "FLAGS", copy.deepcopy(_pristine(module)))
    module.main([module.__name__, *arguments])


def run(module, *arguments):
    """What a program comes to, without a process of its own: its exit code and what it prints."""
    out, err = io.StringIO(), io.StringIO()
    command = [module, *arguments]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", command)
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        warnings.filterwarnings("ignore", message=".* found in sys.modules")
        with pytest.raises(SystemExit) as end:
            runpy.run_module(module, run_name="__main__")
    return subprocess.CompletedProcess(command, end.value.code, out.getvalue(), err.getvalue())


@functools.cache
def _pristine(module):
    return copy.deepcopy(module.FLAGS)


def interrupt_at_second_score():
    """Returns train.run's score, but for an interruption at its second call."""
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(*args, **kwargs)

    return interrupted


def timeless(line):
    """A line of metrics.jsonl without what depends on the time of day."""
    timed = ("_per_sec", "/mfu")
    return {name: value for name, value in line.items() if not name.endswith(timed)}
