"""Sets of tensorflow-datasets, found where they lie prepared, without TensorFlow."""

from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.constants import DATA_DIR
from tensorflow_datasets.core.registered import DatasetNotFoundError

from train.errors import BadInput


def find(name: str, data_dir: str | None, own: Sequence[str] = ()) -> Any:
    """Returns the builder of a prepared set, whose files can be read without TensorFlow.

    Args:
      name: the set's name, with its config where it has several: 'glue/sst2'.
      data_dir: the folder it lies in; None: tensorflow-datasets' own default.
      own: the names that stand for sets of this project's own, for the message.

    Raises:
      BadInput: no set has the name, it is not prepared, or its files need TensorFlow.
    """
    where = data_dir or DATA_DIR
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except DatasetNotFoundError as error:
        none_of = f"neither {' nor '.join(map(repr, own))} nor" if own else "not"
        raise BadInput(
            f"config.data.name={name!r} is {none_of} a set that "
            f"tensorflow-datasets knows or finds in {where} (config.data.data_dir={data_dir!r})"
        ) from error
    except Exception as error:  # it raises whatever a name or an address makes of its libraries
        what = f"{error}".partition("\n")[0].strip() or type(error).__name__
        raise BadInput(
            f"config.data.name={name!r} cannot be opened in config.data.data_dir={data_dir!r} "
            f"({what}): give the name of a set, as 'mnist' or 'glue/sst2', and the folder that it "
            "lies in"
        ) from error
    option = f" --data_dir={data_dir}" if data_dir else ""
    if not builder.data_path.exists():
        raise BadInput(
            f"config.data.name: {name} is not prepared in {where}: run `python -m train.prepare "
            f"{name}{option}`, or give the folder it lies in as --config.data.data_dir"
        )
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise BadInput(
            f"config.data.name: {builder.data_path} is of file format {builder.info.file_format}, "
            "which needs TensorFlow to read: prepare it with file_format='array_record', or "
            "convert it with `python -m tensorflow_datasets.scripts.convert_format`"
        )
    return builder
