"""What can be prepared, from which files, and where; what may be there already."""

import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import tensorflow_datasets as tfds

from odeformer.errors import unknown
from train.errors import BadInput


def check_one_set(names: Sequence[str], accepted: Sequence[str]) -> None:
    """Refuses a command line that names no set, or several."""
    if len(names) != 1:
        raise BadInput(
            f"give one set, of {', '.join(accepted)}, e.g. python -m train.prepare cifar100"
        )


def check_name(name: str, accepted: Collection[str]) -> None:
    """Refuses a set that cannot be prepared here."""
    # The one set of the configs whose archives cannot be downloaded without an account.
    if name == "imagenet2012":
        raise BadInput(
            "imagenet2012 is not prepared here: prepare it once with tensorflow-datasets and "
            "TensorFlow (`tfds build imagenet2012 --file_format=array_record`, with the official "
            "archives), then read it from its folder, with --config.data.data_dir"
        )
    if name not in accepted:
        raise BadInput(
            f"{unknown('set', name, accepted)} Others are prepared with tensorflow-datasets "
            "and TensorFlow."
        )


def check_local(data_dir: str | pathlib.Path) -> None:
    """Refuses a store such as gs://, which has neither locks nor folders that can be renamed."""
    if "://" in str(data_dir):
        raise BadInput(
            f"--data_dir={data_dir} is not local: prepare into a local folder, and copy it"
        )


def check_prepared(target: pathlib.Path) -> None:
    """Refuses an existing folder that cannot be read; another program may have written it."""
    try:
        file_format: Any = tfds.builder_from_directory(target).info.file_format
    # tensorflow-datasets raises errors of many kinds on a broken folder.
    except Exception as error:
        raise BadInput(f"{target} exists, but holds no prepared set: remove it") from error

    if file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise BadInput(
            f"{target} exists in the file format {file_format.value}, which needs TensorFlow to "
            "read: give another --data_dir"
        )


def check_location(location: pathlib.Path, names: Sequence[str]) -> None:
    """Refuses a single file for a set that is published as several, of these names."""
    if len(names) > 1 and not location.is_dir():
        raise BadInput(
            f"--archive={location} is not a folder: give one that holds {', '.join(names)}"
        )
