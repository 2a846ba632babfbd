"""Compiles the train step for a slice of TPUs on any machine, and reports what it needs.

    python -m train.aot --config=configs/imagenet.py:variant=vit_l --topology=v5e:16x16
    python -m train.aot --config=configs/lm1b.py:variant=gpt_1b --topology=v5e:8x8 --num_slices=2 \\
        --config.mesh.data=2 --json

It is the program that `python -m train` runs on such a slice, as XLA compiles it; no data is read.
Printed are, per chip, parameters, optimiser state, the moving average of the weights and temporary
memory, against the chip's HBM; the model FLOPs per step; and what the chips communicate, as
train/aot/compiled.py counts it. Exit codes: 0 it fits, 1 it does not (and what would help) or
failed, 2 bad input.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence

from train.startup import announce, note

announce(__name__)  # before what takes seconds to import

from absl import flags
from rich.console import Console

from train import command_line
from train.aot.report import make_report
from train.aot.tables import print_report
from train.data.sizes import with_sizes
from train.errors import BadInput

FLAGS = flags.FlagValues()
flags.DEFINE_string("topology", None, "The slice of TPUs, e.g. v5e:16x16.", flag_values=FLAGS)
flags.DEFINE_integer(
    "num_slices", 1, "Number of slices, joined by the data centre's network.", flag_values=FLAGS
)
flags.DEFINE_bool("json", False, "Print one JSON object, and nothing else.", flag_values=FLAGS)


def main(argv: Sequence[str]) -> None:
    config = command_line.parse_config(argv, FLAGS, complete=with_sizes)
    if not FLAGS.topology:
        raise BadInput("--topology is missing: give a slice of TPUs, e.g. --topology=v5e:4x4")

    name = command_line.flag_value(argv, "config") or ""
    note(f"compiling the train step for {FLAGS.topology}")
    report = make_report(config, name, FLAGS.topology, FLAGS.num_slices)

    if FLAGS.json:
        print(json.dumps(dataclasses.asdict(report)))
    else:
        print_report(report, Console(soft_wrap=True, highlight=False))

    if not report.fits:
        sys.exit(command_line.FAILED)


if __name__ == "__main__":
    sys.exit(command_line.run(main, sys.argv, FLAGS, __doc__, "config"))
