"""The folder of a model: one on the disk, or one that the Hugging Face Hub has under a name."""

import os
import pathlib
import re

from odeformer.interop.file_checks import no_download, no_folder
from odeformer.interop.packages import needed

# Of the Hub's folder nothing else is downloaded, and so no pickle.
FILES = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "model*.safetensors",
    "model.safetensors.index.json",
)
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def find_folder(folder: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the folder of a model, which a name on the Hub is downloaded into.

    Raises:
      ImportError: a name, without the package huggingface_hub.
      ValueError: no folder and no name, or a name that cannot be downloaded.
    """
    path = pathlib.Path(folder).expanduser()
    if path.is_dir():
        return path

    if path.exists() or not isinstance(folder, str) or not _NAME.fullmatch(folder):
        raise no_folder(folder)

    hub, errors = needed("huggingface_hub"), needed("huggingface_hub.errors")
    try:
        return pathlib.Path(hub.snapshot_download(folder, allow_patterns=list(FILES)))
    except (OSError, ValueError, errors.HfHubHTTPError) as error:
        raise no_download(folder, error) from None
