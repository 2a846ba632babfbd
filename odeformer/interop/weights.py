"""Tensors of safetensors files, read one by one and written at once."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from odeformer.interop.file_checks import (
    check_index,
    check_stored_dtype,
    no_json,
    no_weights,
    unreadable,
)
from odeformer.interop.packages import needed

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Weights(NamedTuple):
    """Tensors in files.

    Attributes:
      shapes: of each tensor, by name.
      files: the file that holds it, by name.
    """

    shapes: dict[str, tuple[int, ...]]
    files: dict[str, pathlib.Path]

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor, and no other."""
        # Opened again for each: an open file stays mapped, and what was read of it in memory.
        with _opened(self.files[name]) as file:
            return file.get_tensor(name)


def find_weights(paths: list[pathlib.Path]) -> Weights:
    """Returns the tensors of files, which are read when they are asked for.

    Raises:
      ValueError: a file that is missing, cut off or no file of safetensors, or a dtype that is not
        floating.
    """
    weights = Weights({}, {})
    for path in paths:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                check_stored_dtype(path, name, tensor.get_dtype())
                weights.shapes[name], weights.files[name] = tuple(tensor.get_shape()), path

    return weights


def _opened(path: pathlib.Path) -> Any:
    safetensors = needed("safetensors")
    try:
        return safetensors.safe_open(str(path), framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise unreadable(path, error) from None


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the file of a folder's weights, or the shards that its index lists.

    Raises:
      ValueError: neither, or an index that lists something other than files of the folder.
    """
    if (folder / FILE).exists():
        return [folder / FILE]

    if not (folder / INDEX).exists():
        raise no_weights(folder, (FILE, INDEX))

    places = read_json(folder / INDEX).get("weight_map")
    check_index(folder / INDEX, places)
    return [folder / name for name in sorted(set(places.values()))]


def read_json(path: pathlib.Path) -> Any:
    """Returns the mapping that a JSON file holds.

    Raises:
      ValueError: no such file, or another content.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise no_json(path, error) from None

    if not isinstance(content, dict):
        raise no_json(path)

    return content


def write_weights(
    path: pathlib.Path, tensors: dict[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes all tensors to a file, which is there whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        # A new file's permissions, which safetensors would keep to its owner.
        part.touch()
        mode = part.stat().st_mode
        needed("safetensors.numpy").save_file(tensors, str(part), metadata=dict(metadata))
        os.chmod(part, mode)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
