"""Whether a set of tensorflow-datasets can be opened, and read without TensorFlow."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.constants import DATA_DIR
from tensorflow_datasets.core.registered import DatasetNotFoundError

from train.errors import BadInput


@contextlib.contextmanager
def opening(name: str, data_dir: str | None, builtin: Sequence[str]) -> Iterator[None]:
    """Reports as bad input what keeps a set from being opened.

    Args:
      name: the set's name.
      data_dir: the folder of the prepared sets; None: tensorflow-datasets' own default.
      builtin: names of this project's own sets.
    """
    try:
        yield
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


def check_readable(builder: Any, name: str, data_dir: str | None) -> None:
    """Refuses a set that is not prepared, or whose files need TensorFlow."""
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


def check_has_train(sizes: Mapping[str, int], name: str) -> None:
    """Refuses a set without a training example."""
    if not sizes.get("train"):
        raise BadInput(
            f"config.data.name: {name} has no examples in a split 'train'; it has {dict(sizes)}: "
            "choose another set"
        )


def check_splits(name: str, splits: Any, what: str, is_split: Callable[[Any], bool]) -> None:
    """Refuses what a registered set returns where it is not the three splits.

    Args:
      name: of the set.
      splits: what it returned.
      what: what each split is, in words.
      is_split: whether a value is one.
    """
    names = ("train", "validation", "test")
    if not isinstance(splits, Mapping) or set(splits) != set(names):
        has = list(splits) if isinstance(splits, Mapping) else splits
        raise BadInput(
            f"config.data.name={name!r}: a data set returns a dict of 'train', 'validation' and "
            f"'test'; {has!r} was returned"
        )

    for split in names:
        if not is_split(splits[split]):
            raise BadInput(
                f"config.data.name={name!r}: its split {split!r} is {what}; "
                f"{splits[split]!r:.80} was returned"
            )
