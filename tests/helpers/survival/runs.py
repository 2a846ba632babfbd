"""Starts runs in processes of their own, and reads what they leave."""

import contextlib
import itertools
import multiprocessing
import os
import pathlib
import random
import time
from multiprocessing import forkserver

import jax
import numpy as np
import orbax.checkpoint as ocp

from tests.helpers.checkout import ROOT
from tests.helpers.survival import child
from train.checkpoint.checksums import leaf_name
from train.checkpoint.metadata import STATE, read_metadata
from train.checkpoint.workdir import checkpoint_folder, saved_steps
from train.logs.metrics import read_metrics, read_scores

STOPS_SECS = 30  # that a run may take to end behind a signal
HANGS_SECS = 300  # behind which a run has no business to be alive
_CONTEXT = multiprocessing.get_context("forkserver")
_numbers = itertools.count()


def start_server():
    """Starts the server that processes are forked from: each is spared the seconds of imports."""
    _CONTEXT.set_forkserver_preload([child.__name__])
    with contextlib.ExitStack() as stack:
        for name, value in {
            "PYTHONPATH": str(ROOT),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }.items():
            stack.callback(_put_back, name, os.environ.get(name))
            os.environ[name] = value
        forkserver.ensure_running()


def _put_back(name, value):
    if value is None:
        del os.environ[name]
    else:
        os.environ[name] = value


class Start:
    """A process that runs one of `child`'s programs."""

    def __init__(self, folder, main, *args):
        self.journal = pathlib.Path(folder) / f"journal-{next(_numbers)}"
        arguments = (str(self.journal), main, *args)
        self.process = _CONTEXT.Process(target=child.run, args=arguments)
        self.began = time.monotonic()
        self.process.start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.join()

    def lines(self):
        """The whole lines of the journal, split into words."""
        if not self.journal.exists():
            return []
        whole, _, _ = self.journal.read_text().rpartition("\n")
        return [line.split() for line in whole.splitlines()]

    def batches(self):
        """{step: checksum} of the batches that were taken."""
        return {int(step): sum_ for step, sum_ in self.lines() if step != "start"}

    def holds(self):
        """Whether the process stands still at the moment that it was asked to hold at."""
        return pathlib.Path(f"{self.journal}.holds").exists()

    def printed(self):
        """What the process has printed, but for what its death kept in the buffer."""
        return pathlib.Path(f"{self.journal}.out").read_text()

    def wait_for(self, is_there):
        """Returns when something is the case, or when the process has ended."""
        while self.process.is_alive() and not is_there():
            assert time.monotonic() < self.began + HANGS_SECS, f"it hangs\n{self.printed()}"
            time.sleep(0.002)

    def signal(self, number):
        """Sends a signal; none where the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def end(self, within_secs=HANGS_SECS):
        """Waits, and returns the exit code; the signal, negative, that killed it."""
        self.process.join(within_secs)
        assert self.process.exitcode is not None, f"it hangs\n{self.printed()}"
        return self.process.exitcode


class Moments:
    """Random moments in the life of a run: starting, compiling, training, saving, ending."""

    def __init__(self):
        given = os.environ.get("SURVIVAL_SEED")
        seed = int(given) if given else random.SystemRandom().randrange(2**32)
        print(f"SURVIVAL_SEED={seed}")  # pytest shows it where a test fails
        self.random = random.Random(seed)

    def wait(self, started, steps):
        """Waits for a moment of a process that trains a run of so many steps."""
        if self.random.random() < 0.25:
            time.sleep(self.random.uniform(0, 4))
            return
        more = self.random.randint(1, 7)
        started.wait_for(lambda: len(started.batches()) >= more or steps in started.batches())
        behind = 3 if steps in started.batches() else 0.5  # the end of a run takes its time
        pause = time.monotonic() + self.random.uniform(0, behind)
        started.wait_for(lambda: time.monotonic() > pause)


def finish(folder, *args):
    """Runs a program to its end, which must be a good one; returns the start."""
    with Start(folder, *args) as started:
        assert started.end() == 0, started.printed()
    return started


def outcome(workdir):
    """All that a run leaves but times: {what: what can be compared}."""
    path = pathlib.Path(workdir)
    metrics = [
        {k: v for k, v in line.items() if not k.endswith("_per_sec") and k != "train/mfu"}
        for line in read_metrics(path)
    ]
    return {
        "files": sorted(entry.name for entry in path.iterdir()),
        "config": (path / "config.json").read_text(),
        "metrics": metrics,
        "scores": _exact(read_scores(path)),
        "checkpoints": {
            step: (read_metadata(path, step).to_json(), _exact(read_arrays(path, step)))
            for step in saved_steps(path)
        },
        "leftovers": sorted(
            entry.name for entry in checkpoint_folder(path).iterdir() if not entry.name.isdigit()
        ),
    }


def check_same(found, expected, stopped=True):
    """Fails with the first thing in which two outcomes differ.

    Args:
      found: of a run that was interrupted.
      expected: of a run that was not.
      stopped: whether the run was told to stop, behind steps that are not saved otherwise; then
        the checkpoints need to be the same only where both have one, as they do of the last step.
    """
    found, expected = dict(found), dict(expected)
    mine, theirs = found.pop("checkpoints"), expected.pop("checkpoints")
    assert max(mine) == max(theirs)
    assert stopped or list(mine) == list(theirs)
    for step in mine.keys() & theirs.keys():
        (record, arrays), (known, values) = mine[step], theirs[step]
        assert record == known and list(arrays) == list(values), step
        assert [name for name in arrays if arrays[name] != values[name]] == [], step
    for name in expected:
        assert found[name] == expected[name], name


def read_arrays(workdir, step):
    """{name: array} of a checkpoint's state, read without any of the trainer's code."""
    folder = checkpoint_folder(workdir) / str(step) / STATE
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(folder).item_metadata.tree
        whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = checkpointer.restore(folder, restore_args=whole)
    return {
        leaf_name(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def _exact(arrays):
    return {name: (x.shape, str(x.dtype), x.tobytes()) for name, x in arrays.items()}


def newest(workdir):
    """The step of a run's newest checkpoint; 0 where there is none."""
    return max(saved_steps(workdir), default=0)
