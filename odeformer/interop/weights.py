"""Tensors of safetensors files, read one by one and written at once."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from odeformer.interop.packages import needed

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DTYPES = ("F64", "F32", "F16", "BF16")


class Weights(NamedTuple):
    """Open files of tensors.

    Attributes:
      shapes: of each tensor, by name.
      files: the open file that holds it, by name.
    """

    shapes: dict[str, tuple[int, ...]]
    files: dict[str, Any]

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor, and no other."""
        return self.files[name].get_tensor(name)


@contextlib.contextmanager
def open_weights(paths: list[pathlib.Path]) -> Iterator[Weights]:
    """Opens files of tensors, which are read when they are asked for.

    Raises:
      ValueError: a file that is missing, cut off or no file of safetensors, or a dtype that is not
        floating.
    """
    safetensors = needed("safetensors")
    weights = Weights({}, {})
    with contextlib.ExitStack() as stack:
        for path in paths:
            try:
                file = stack.enter_context(safetensors.safe_open(str(path), framework="numpy"))
            except FileNotFoundError:
                raise ValueError(f"there is no file {path}: copy the folder again") from None
            except (safetensors.SafetensorError, OSError) as error:
                raise ValueError(
                    f"{path} cannot be read as safetensors ({error}): it is cut off or something "
                    "else; copy or download it again"
                ) from None

            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                if tensor.get_dtype() not in DTYPES:
                    raise ValueError(
                        f"tensor {name} of {path} has the dtype {tensor.get_dtype()}; "
                        f"{', '.join(DTYPES)} are accepted: take a file that is not quantised"
                    )
                weights.shapes[name], weights.files[name] = tuple(tensor.get_shape()), file

        yield weights


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the file of a folder's weights, or the shards that its index lists.

    Raises:
      ValueError: neither, or an index that lists something other than files of the folder.
    """
    if (folder / FILE).exists():
        return [folder / FILE]

    if (folder / INDEX).exists():
        files = read_json(folder / INDEX).get("weight_map")
        names = sorted(set(files.values())) if isinstance(files, dict) else []
        if not names or any(name != pathlib.PurePath(str(name)).name for name in names):
            raise ValueError(
                f"{folder / INDEX} has no weight_map from tensors to names of files beside it: "
                "download it again"
            )
        return [folder / name for name in names]

    pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLES]
    if pickles:
        raise ValueError(
            f"{folder} holds weights as a pickle ({pickles[0]}), which can run any code when it is "
            "read and is never opened here: convert it to safetensors where you trust it, by "
            "AutoModel.from_pretrained(...).save_pretrained(...) of transformers, or the Hugging "
            "Face Hub's Space safetensors/convert"
        )

    raise ValueError(f"{folder} holds no weights: neither {FILE} nor {INDEX} is there")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns the mapping that a JSON file holds.

    Raises:
      ValueError: no such file, or another content.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path.parent} holds no {path.name}: give the folder of a model that transformers or "
            "save_pretrained wrote"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): copy or download it again") from None

    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no mapping: copy or download it again")

    return content


def write_weights(
    path: pathlib.Path, tensors: dict[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes all tensors to a file, which is there whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        needed("safetensors.numpy").save_file(tensors, str(part), metadata=dict(metadata))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
