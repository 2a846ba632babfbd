"""CIFAR-10 and CIFAR-100, prepared without TensorFlow.

The builders are tensorflow-datasets' own, with the same features, names, versions and sequence of
records; only the reading of the archive is different, by NumPy and Pillow.

Source: Krizhevsky, 'Learning Multiple Layers of Features from Tiny Images', 2009.
"""

import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from rich.progress import Progress
from tensorflow_datasets import image_classification as stock

from train.errors import BadInput
from train.prepare.archive import read_members

_SHAPE = (3, 32, 32)  # of the pixels in the archive: channels first
_PIXELS = 3 * 32 * 32


# Not registered: tensorflow-datasets' own builder keeps the name, and reads what this one writes.
class Cifar10(stock.Cifar10, skip_registration=True):
    """Builds CIFAR-10 from the binary version of its archive.

    Args:
      archives: the path of the one published file, by its name.
      progress: displays the progress of the preparation.
      **kwargs: data_dir and file_format, as every builder takes them.

    Raises:
      BadInput: the archive lacks a file or holds one of another format.
    """

    def __init__(self, archives: Mapping[str, pathlib.Path], progress: Progress, **kwargs: Any):
        super().__init__(**kwargs)
        (self._archive,) = archives.values()
        self._progress = progress

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        layout = self._cifar_info
        names = [*layout.train_files, *layout.test_files, *layout.label_files]
        members = read_members(self._archive, [layout.prefix + name for name in names])

        features: Any = self.info.features
        for key, name in zip(layout.label_keys, layout.label_files, strict=True):
            features[key].names = members[layout.prefix + name].decode().split()

        def records(files: Iterable[str]) -> np.ndarray:
            content = b"".join(members[layout.prefix + name] for name in files)
            size = len(layout.label_keys) + _PIXELS
            if not content or len(content) % size:
                raise BadInput(
                    f"{', '.join(files)} of {self._archive} is {len(content)} bytes long, not a "
                    f"multiple of a record's {size}: take the binary version of the archive"
                )
            return np.frombuffer(content, np.uint8).reshape(-1, size)

        return {
            "train": self._generate_examples("train_", records(layout.train_files)),
            "test": self._generate_examples("test_", records(layout.test_files)),
        }

    def _generate_examples(
        self, split_prefix: str, records: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields key and example of each record [N, labels + pixels] uint8."""
        keys = self._cifar_info.label_keys
        description = f"preparing {self.name} {split_prefix.rstrip('_')}"

        for index, record in enumerate(self._progress.track(records, description=description)):
            labels, pixels = record[: len(keys)], record[len(keys) :]
            example = {
                "id": f"{split_prefix}{index:05d}",
                # As an image and not as an array, which tensorflow-datasets encodes by TensorFlow.
                "image": Image.fromarray(pixels.reshape(_SHAPE).transpose(1, 2, 0)),
                **dict(zip(keys, labels.tolist(), strict=True)),
            }
            yield index, example


class Cifar100(Cifar10, stock.Cifar100, skip_registration=True):
    """Builds CIFAR-100, whose records carry a fine and a coarse label, in the same way."""
