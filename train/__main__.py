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


def main(argv: Sequence[str]) -> None:
    """The program."""
    cfg = command_line.parse_with_config(argv)
    if not flags.FLAGS.workdir:
        raise BadInput("--workdir is missing: give a folder for the run, e.g. --workdir=runs/x")
    train(cfg, flags.FLAGS.workdir)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder or gs:// address of the run; made if missing.")
    sys.exit(command_line.run(main, sys.argv, __doc__))
