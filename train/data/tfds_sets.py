"""Prepared sets of tensorflow-datasets, opened without TensorFlow."""

from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds

from train.data.checks import check_has_train, check_readable, opening


def find(name: str, data_dir: str | None, builtin: Sequence[str] = ()) -> Any:
    """Returns the builder of a prepared set whose files can be read without TensorFlow.

    Args:
      name: the set's name, with its config where it has several: 'glue/sst2'.
      data_dir: the folder of the prepared sets; None: tensorflow-datasets' own default.
      builtin: names of this project's own sets, for the message.

    Raises:
      BadInput: no set has the name, it is not prepared, or its files need TensorFlow.
    """
    with opening(name, data_dir, builtin):
        builder = tfds.builder(name, data_dir=data_dir)

    check_readable(builder, name, data_dir)
    return builder


def split_sizes(builder: Any, name: str) -> dict[str, int]:
    """Returns the number of examples of each split.

    Args:
      builder: of a prepared set.
      name: the set's name, for the message.

    Raises:
      BadInput: there is no split 'train', or it is empty.
    """
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    check_has_train(sizes, name)
    return sizes


def place_of(splits: Any, split: str, index: int) -> str:
    """Returns '; it is record NUMBER of FILE', for the end of a message.

    Args:
      splits: the set's, `builder.info.splits`.
      split: in tfds' notation, e.g. 'train[:-10]'.
      index: the record in the split.
    """
    for part in splits[split].file_instructions:
        if index < part.take:
            return f"; it is record {part.skip + index} of {part.filename}"
        index -= part.take
    return ""
