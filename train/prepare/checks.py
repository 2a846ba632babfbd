"""Where a set can be prepared, and what may be there already."""

import pathlib
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds

from train.errors import BadInput
from train.prepare.archive import Archive


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


def check_location(location: pathlib.Path, archives: Sequence[Archive]) -> None:
    """Refuses a single file for a set that is published as several."""
    if len(archives) > 1 and not location.is_dir():
        names = ", ".join(archive.name for archive in archives)
        raise BadInput(f"--archive={location} is not a folder: give one that holds {names}")
