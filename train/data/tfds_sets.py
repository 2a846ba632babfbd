"""Prepared sets of tensorflow-datasets, opened without TensorFlow."""

from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.constants import DATA_DIR
from tensorflow_datasets.core.registered import DatasetNotFoundError

from train.errors import BadInput


def find(name: str, data_dir: str | None, builtin: Sequence[str] = ()) -> Any:
    """Returns the builder of a prepared set whose files can be read without TensorFlow.

    Args:
      name: the set's name, with its config where it has several: 'glue/sst2'.
      data_dir: the folder of the prepared sets; None: tensorflow-datasets' own default.
      builtin: names of this project's own sets, for the message.

    Raises:
      BadInput: no set has the name, it is not prepared, or its files need TensorFlow.
    """
    builder = _open(name, data_dir, builtin)
    _check_readable(builder, name, data_dir)
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

    if not sizes.get("train"):
        raise BadInput(
            f"config.data.name: {name} has no examples in a split 'train'; it has {sizes}: choose "
            "another set"
        )
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


def _open(name: str, data_dir: str | None, builtin: Sequence[str]) -> Any:
    try:
        return tfds.builder(name, data_dir=data_dir)
    except DatasetNotFoundError as error:
        neither = f"neither {' nor '.join(map(repr, builtin))} nor" if builtin else "not"
        raise BadInput(
            f"config.data.name={name!r} is {neither} a set that tensorflow-datasets knows or finds "
            f"in {data_dir or DATA_DIR} (config.data.data_dir={data_dir!r})"
        ) from error
    # A malformed name or address reaches libraries that raise errors of their own kinds.
    except Exception as error:
        reason = f"{error}".partition("\n")[0].strip() or type(error).__name__
        raise BadInput(
            f"config.data.name={name!r} cannot be opened in config.data.data_dir={data_dir!r} "
            f"({reason}): give the name of a set, such as 'mnist' or 'glue/sst2', and the folder "
            "that holds it"
        ) from error


def _check_readable(builder: Any, name: str, data_dir: str | None) -> None:
    if not builder.data_path.exists():
        option = f" --data_dir={data_dir}" if data_dir else ""
        raise BadInput(
            f"config.data.name: {name} is not prepared in {data_dir or DATA_DIR}: run `python -m "
            f"train.prepare {name}{option}`, or give the folder that holds it as "
            "--config.data.data_dir"
        )

    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise BadInput(
            f"config.data.name: {builder.data_path} has the file format {builder.info.file_format},"
            " which needs TensorFlow to read: prepare it with file_format='array_record', or "
            "convert it with `python -m tensorflow_datasets.scripts.convert_format`"
        )
