"""Prepares a set of tensorflow-datasets for reading, without TensorFlow.

    python -m train.prepare cifar100
    python -m train.prepare cifar100 --data_dir=data --archive=cifar-100-binary.tar.gz

Sets: cifar10, cifar100, mnist, fashion_mnist, tiny_shakespeare. Their official files are
downloaded, or taken from --archive, checked, and written as ArrayRecord files that
tensorflow-datasets itself reads. A set appears in data_dir only when it is complete; a set that is
already there is left unchanged.
Exit codes: 0 done, 1 failed, 2 bad input.
"""

import signal
import sys
from collections.abc import Sequence

from train.startup import announce, note

announce(__name__)  # before what takes seconds to import

from absl import flags
from tensorflow_datasets.core.constants import DATA_DIR

from train import command_line
from train.prepare.build import prepare
from train.prepare.checks import check_one_set
from train.prepare.sets import BUILDERS, find

FLAGS = flags.FlagValues()
command_line.define_path(
    "data_dir",
    f"Folder of the prepared sets; by default that of tensorflow-datasets, {DATA_DIR}.",
    FLAGS,
)
command_line.define_path(
    "archive",
    "The set's official file, or a folder that holds its files; by default they are downloaded.",
    FLAGS,
)


def main(argv: Sequence[str]) -> None:
    """Prepares the set that the command line names."""
    names = command_line.parse(argv, FLAGS)
    check_one_set(names, [builder.name for builder in BUILDERS])

    # SIGTERM cleans up as an interrupt does; by default it would leave the unfinished folder.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    source, data_dir = find(names[0]), FLAGS.data_dir or DATA_DIR
    note(f"preparing {names[0]} in {data_dir}")
    print(prepare(source, data_dir, FLAGS.archive))


if __name__ == "__main__":
    sys.exit(command_line.run(main, sys.argv, FLAGS, __doc__))
