"""What is refused of folders and files: none there, cut off, pickles, values that are not read."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

DTYPES = ("F64", "F32", "F16", "BF16")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CONVERT = (
    "convert it to safetensors where you trust it, by AutoModel.from_pretrained(...)."
    "save_pretrained(...) of transformers, or the Hugging Face Hub's Space safetensors/convert"
)


def no_folder(folder: str | os.PathLike[str]) -> ValueError:
    """Returns the error for what is neither a folder nor a name on the Hub."""
    return ValueError(
        f"{str(folder)!r} is no folder: give the folder that holds config.json and "
        "model.safetensors, or a name on the Hugging Face Hub such as 'gpt2'"
    )


def no_download(name: str, error: Exception) -> ValueError:
    """Returns the error for a name that the Hub does not have, or that cannot be asked for."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(
        f"there is no folder {name!r} here, and as a name on the Hugging Face Hub it cannot be "
        f"downloaded ({first}): give a folder, or a name while there is a network or the model is "
        f"in the Hub's cache already; without one, run 'hf download {name} --local-dir FOLDER' on "
        "a machine that has a network, copy FOLDER here, and give it"
    )


def no_json(path: pathlib.Path, error: Exception | None = None) -> ValueError:
    """Returns the error for a JSON file that is not there, or is none, or holds no mapping."""
    if isinstance(error, FileNotFoundError):
        return ValueError(
            f"{path.parent} holds no {path.name}: give the folder of a model that transformers or "
            "save_pretrained wrote"
        )

    what = "holds no mapping" if error is None else f"is no JSON ({error})"
    return ValueError(f"{path} {what}: copy or download it again")


def no_weights(folder: pathlib.Path, accepted: Sequence[str]) -> ValueError:
    """Returns the error for a folder without the accepted files of weights."""
    pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLES]
    if pickles:
        return ValueError(
            f"{folder} holds weights as a pickle ({pickles[0]}), which can run any code when it is "
            f"read and is never opened here: {_CONVERT}"
        )

    return ValueError(
        f"{folder} holds no weights: neither {' nor '.join(accepted)} is there; of the Hub's "
        f"folders nothing else is downloaded, and where one holds a pickle alone: {_CONVERT}"
    )


def unreadable(path: pathlib.Path, error: Exception) -> ValueError:
    """Returns the error for a file of tensors that is not there, cut off or something else."""
    if isinstance(error, FileNotFoundError):
        return ValueError(f"there is no file {path}: copy the folder again")

    return ValueError(
        f"{path} cannot be read as safetensors ({error}): it is cut off or something else; copy or "
        "download it again"
    )


def check_stored_dtype(path: pathlib.Path, name: str, dtype: str) -> None:
    """Raises ValueError for a tensor that is not of a floating dtype."""
    if dtype not in DTYPES:
        raise ValueError(
            f"tensor {name} of {path} has the dtype {dtype}; {', '.join(DTYPES)} are accepted: "
            "take a file that is not quantised"
        )


def check_index(path: pathlib.Path, places: Any) -> None:
    """Raises ValueError for an index that does not map tensors to names of files in its folder."""
    names = list(places.values()) if isinstance(places, Mapping) else []
    if not names or any(name != pathlib.PurePath(str(name)).name for name in names):
        raise ValueError(
            f"{path} has no weight_map from tensors to files in its folder: download it again"
        )


def check_moments(path: pathlib.Path, raw: Mapping[str, Any]) -> None:
    """Raises ValueError where images are standardised by moments that are not said."""
    missing = [key for key in ("image_mean", "image_std") if key not in raw]
    if missing and raw.get("do_normalize", True):
        raise ValueError(f"{path} lacks {' and '.join(missing)}: take them from the model's page")


def check_filter(path: pathlib.Path, number: Any, filters: Sequence[str]) -> None:
    """Raises ValueError for a number that is none of Pillow's filters."""
    if number not in range(len(filters)):
        raise ValueError(
            f"{path} says resample={number!r}; 0 to {len(filters) - 1} are accepted, Pillow's "
            f"{', '.join(filters)}: correct the file"
        )


def check_size(path: pathlib.Path, size: Any) -> None:
    """Raises ValueError for a size that is neither a side nor a height and a width."""
    if not isinstance(size, int) and not (
        isinstance(size, Mapping) and {"height", "width"} <= size.keys()
    ):
        raise ValueError(f"{path} holds a size that has no height and width: {size!r}")
