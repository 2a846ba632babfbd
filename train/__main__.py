"""Trains a run.

    python -m train --config=configs/digits.py --workdir=runs/digits
    python -m train --config=configs/digits.py --config.depth.solver=euler --workdir=runs/euler
    python -m train --config=configs/digits.py --help       lists the config's keys

A workdir that holds the same run already is gone on with. Exit codes: 0 done, 1 failed, 2 bad
input.
"""

import sys
from collections.abc import Sequence

from absl import flags

from train import command_line
from train.errors import BadInput
from train.loop import train

FLAGS = flags.FlagValues()
flags.DEFINE_string("workdir", None, "Folder or gs:// address of the run.", flag_values=FLAGS)


def main(argv: Sequence[str]) -> None:
    """The program."""
    cfg = command_line.parse_with_config(argv, FLAGS)
    if not FLAGS.workdir:
        raise BadInput("--workdir is missing: give a folder for the run, e.g. --workdir=runs/x")
    train(cfg, FLAGS.workdir)


if __name__ == "__main__":
    sys.exit(command_line.run(main, sys.argv, FLAGS, __doc__, "config"))
