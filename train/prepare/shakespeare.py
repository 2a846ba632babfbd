"""Tiny Shakespeare, prepared without TensorFlow.

The features, the name, the version and the splits are those of tensorflow-datasets' own builder.

Source: Karpathy, 'The Unreasonable Effectiveness of Recurrent Neural Networks', 2015.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds
from rich.progress import Progress

from train.errors import BadInput


class TinyShakespeare(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builds tiny Shakespeare from its one file: 90, 5 and 5 % of its characters.

    Args:
      archives: the path of the one published file, by its name.
      progress: ignored: the text is written in a moment.
      **kwargs: data_dir and file_format, as every builder takes them.

    Raises:
      BadInput: the file is not text.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, archives: Mapping[str, pathlib.Path], progress: Progress, **kwargs: Any):
        super().__init__(**kwargs)
        (self._path,) = archives.values()

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        try:
            text = self._path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise BadInput(f"{self._path} is not a text in UTF-8 ({error})") from error

        # Rounded as tensorflow-datasets' builder does, so that the splits are the same.
        train = int(len(text) * 0.9)
        validation = train + int((len(text) - train) * 0.5)

        parts = {
            "train": text[:train],
            "validation": text[train:validation],
            "test": text[validation:],
        }
        return {name: self._generate_examples(name, part) for name, part in parts.items()}

    def _generate_examples(self, split: str, text: str) -> Iterator[tuple[str, dict[str, str]]]:
        yield split, {"text": text}
