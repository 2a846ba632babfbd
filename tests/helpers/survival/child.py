"""What a run's process does; the server that they are forked from has imported this module."""

import atexit
import hashlib
import os
import signal
import sys
import threading
import time
import zlib

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import flags
from etils import epath

from train import command_line, loop
from train import run as runs
from train.checkpoint.saver import Saver
from train.config.border import from_config_dict
from train.config.run import MeshConfig
from train.data.pipeline import Position
from train.devices import processes
from train.devices.mesh import device_mesh, replicated
from train.signals import StopSignals
from train.state import TrainState, init_guard

LONG_SECS = 120  # that a test never waits for


def run(journal, main, *args):
    """Ends this process with the exit code of a program, as an interpreter would.

    Args:
      journal: what is printed goes to the file of this name and '.out'.
      main: the program, called with the journal and the arguments.
      args: its arguments.
    """
    os.setsid()  # else a signal to its group would reach the tests
    printed = os.open(f"{journal}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    code = command_line.run(lambda _: main(journal, *args), [], flags.FlagValues(), None)
    # multiprocessing ends its processes without these.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def train(journal, cfg, workdir, group=(), stop_at=None, hold=None):
    """Trains as `python -m train` does.

    Args:
      journal: a file that gets a line 'start STEP', and 'STEP CHECKSUM' for each batch as it is
        taken: as the checksum of all its arrays.
      cfg: the run's config.
      workdir: of the run.
      group: coordinator, number of processes and this one's number, where there are several; each
        has two devices.
      stop_at: a step at which the process tells itself to stop, as its batch is taken.
      hold: a moment at which the process stands still: 'before' or 'after' it refines its weights
        over depth, or once the refined ones are 'saved'; see `Start.holds`.
    """
    _keep_journal(journal, stop_at)
    if hold:
        _hold_at(hold, f"{journal}.holds")
    if group:
        jax.config.update("jax_num_cpu_devices", 2)
        processes.start(*group)
    with processes.exiting_together():
        loop.train(cfg, workdir)


def leave(journal, group, error, late_secs):
    """Computes with the other processes of a group, and ends.

    Args:
      journal: gets a line when all have computed.
      group: as in `train`.
      error: that it ends with; None to end well.
      late_secs: that it ends later than it could.
    """
    jax.config.update("jax_num_cpu_devices", 1)
    processes.start(*group)
    with processes.exiting_together():
        processes.barrier("all have computed")
        with open(journal, "w") as file:
            print("computed", file=file)
        time.sleep(late_secs)
        if error is not None:
            raise error


def compute(journal, signals=0):
    """Computes within the reach of StopSignals, in one call of C that hears no signal.

    Args:
      journal: gets a line when it begins.
      signals: that the process sends itself before, at once.
    """
    with StopSignals(), open(journal, "w") as file:
        for _ in range(signals):
            signal.raise_signal(signal.SIGTERM)
        print("computing", file=file, flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)


def save_slowly(journal, workdir):
    """Saves two small states behind a first signal, the second of them without end."""
    (epath.Path(workdir) / "config.json").write_text("{}")  # else it counts as vanished
    whole = replicated(device_mesh(MeshConfig(data=-1, fsdp=1, tensor=1)))
    state = TrainState(jnp.ones(()), {"w": jnp.ones(4)}, {}, None, init_guard())
    state = jax.device_put(state, whole)
    changes = {"checkpoint.every_steps": 1, "checkpoint.best": None, "train_steps": 2}
    config = from_config_dict({}, {**changes, "optimizer.warmup_steps": 1})
    with StopSignals(), Saver(epath.Path(workdir), config, 1) as saver:
        saver.save(state, Position(1, 0), {}, wait=True)

        def commit(*args, **kwargs):
            with open(journal, "w") as file:
                print("committing", file=file)
            time.sleep(LONG_SECS)

        ocp.StandardCheckpointHandler.finalize = commit
        saver.save(state, Position(2, 0), {}, wait=True)


def _keep_journal(journal, stop_at):
    take = runs.train_batches

    def train_batches(data, start, **options):
        with open(journal, "a") as file:
            print("start", start.step, file=file, flush=True)
            batches = take(data, start=start, **options)
            for step, batch in enumerate(batches, start.step + 1):
                checksum = 0
                for name in sorted(batch):
                    checksum = zlib.crc32(batch[name].tobytes(), checksum)
                print(step, checksum, file=file, flush=True)
                if step == stop_at:
                    signal.raise_signal(signal.SIGTERM)
                yield batch

    runs.train_batches = train_batches


def _hold_at(moment, path):
    """Stands still at a moment of the first refinement, having made a file of this path."""
    refine, save, refined_at = loop._refine, Saver.save, []

    def hold():
        open(path, "w").close()
        time.sleep(LONG_SECS)

    def refine_and_hold(run, log, step, state):
        # What was saved before is on the disk, so that one knows from where the run resumes.
        run.saver.wait()
        if moment == "before":
            hold()
        state, run = refine(run, log, step, state)
        jax.block_until_ready(state)
        if moment == "after":
            hold()
        refined_at.append(step)
        return state, run

    def save_and_hold(self, state, position, scores, wait):
        if moment != "saved" or position.step not in refined_at:
            return save(self, state, position, scores, wait)
        save(self, state, position, scores, wait=True)
        hold()

    loop._refine, Saver.save = refine_and_hold, save_and_hold
