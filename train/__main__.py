"""Trains a run.

    python -m train --config=configs/digits.py --workdir=runs/digits
    python -m train --config=configs/digits.py --config.depth.solver=euler --workdir=runs/euler
    python -m train --config=configs/digits.py --help       lists the config's keys

A run that its workdir holds already is resumed.

On several hosts or GPUs the same command is started once for each, with a workdir that all of them
see: under srun or mpirun (one task per GPU) and on GKE without further flags; on the hosts of a
Cloud TPU slice with --coordinator=auto; anywhere else with the address of the first process:

    python -m train ... --coordinator=10.0.0.1:1234 --num_processes=2 --process_id=0
    python -m train ... --coordinator=10.0.0.1:1234 --num_processes=2 --process_id=1

SIGTERM and Ctrl-C stop a run after the current step, with its state saved; the same command resumes
it, and the run ends as if it had not been interrupted. A second signal stops it at once.

Exit codes: 0 done, 1 failed, 2 bad input, 75 stopped by a signal with its state saved.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from train import startup
from train.devices.cluster import is_first

# Before what takes seconds to import.
startup.announce(__name__, is_first(sys.argv, os.environ))

from absl import flags

from train import command_line
from train.checkpoint.workdir import recorded_values
from train.config.border import Cfg
from train.data.sizes import with_sizes
from train.devices import processes
from train.errors import BadInput
from train.logs.tracing import parse_span
from train.loop import train

FLAGS = flags.FlagValues()
command_line.define_path("workdir", "Folder or gs:// address of the run.", FLAGS)
flags.DEFINE_string(
    "profile_steps",
    None,
    "FIRST:LAST steps of this start, from 1, to trace into WORKDIR/profile.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of process 0, where several processes train one run; auto: what jax finds.",
    flag_values=FLAGS,
)
flags.DEFINE_integer("num_processes", None, "How many processes there are.", flag_values=FLAGS)
flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", flag_values=FLAGS)
flags.DEFINE_integer(
    "join_timeout_secs",
    300,
    "Seconds to wait for the other processes.",
    lower_bound=1,
    flag_values=FLAGS,
)


def _complete(cfg: Cfg, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes, and what the file leaves out: of the run that the workdir holds, if it does."""
    return with_sizes(cfg, changes, lambda: recorded_values(FLAGS.workdir))


def main(argv: Sequence[str]) -> None:
    config = command_line.parse_config(argv, FLAGS, complete=_complete)
    if not FLAGS.workdir:
        raise BadInput("--workdir is missing: give a folder for the run, e.g. --workdir=runs/x")

    traced = parse_span(FLAGS.profile_steps) if FLAGS.profile_steps is not None else None
    processes.start(
        FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, FLAGS.join_timeout_secs
    )

    # The flags and the environment may not have said which process is the first.
    startup.report_as(processes.is_primary())

    with processes.exiting_together():
        train(config, FLAGS.workdir, traced)


if __name__ == "__main__":
    sys.exit(command_line.run(main, sys.argv, FLAGS, __doc__, "config"))
