"""MNIST and Fashion-MNIST, prepared without TensorFlow.

The builders are tensorflow-datasets' own; only the reading of the files is different.

Sources: LeCun, Cortes, Burges, 'The MNIST Database of Handwritten Digits', 2010; Xiao, Rasul,
Vollgraf, 'Fashion-MNIST', 2017, arXiv 1708.07747.
"""

import gzip
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from rich.progress import Progress
from tensorflow_datasets import image_classification as stock

from train.prepare.file_checks import check_idx, check_pairs, unpacking

FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_UINT8 = 0x08  # the IDX format's code of the element type


# Not registered: tensorflow-datasets' own builder keeps the name, and reads what this one writes.
class MNIST(stock.MNIST, skip_registration=True):
    """Builds MNIST from its four files.

    Args:
      archives: the paths of the published files, by name.
      progress: displays the progress of the preparation.
      **kwargs: data_dir and file_format, as every builder takes them.

    Raises:
      BadInput: a file is not in the IDX format, or images and labels differ in number.
    """

    def __init__(self, archives: Mapping[str, pathlib.Path], progress: Progress, **kwargs: Any):
        super().__init__(**kwargs)
        self._archives = archives
        self._progress = progress

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {
            split: self._generate_examples(split, self._archives[images], self._archives[labels])
            for split, (images, labels) in FILES.items()
        }

    def _generate_examples(
        self, split: str, data_path: pathlib.Path, label_path: pathlib.Path
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = _read_idx(data_path, ndim=3), _read_idx(label_path, ndim=1)
        check_pairs(images, data_path, labels, label_path)

        description = f"preparing {self.name} {split}"
        for index, image in enumerate(self._progress.track(images, description=description)):
            # As an image and not as an array, which tensorflow-datasets encodes by TensorFlow.
            yield index, {"image": Image.fromarray(image), "label": int(labels[index])}


class FashionMNIST(MNIST, stock.FashionMNIST, skip_registration=True):
    """Builds Fashion-MNIST, whose files have the layout of MNIST's."""


def _read_idx(path: pathlib.Path, ndim: int) -> np.ndarray:
    """Reads a compressed array of uint8: magic 0, 0, type, ndim, then big-endian sizes."""
    with unpacking(path):
        content = gzip.decompress(path.read_bytes())

    header = 4 + 4 * ndim
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    check_idx(path, content, bytes((0, 0, _UINT8, ndim)), shape)

    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
