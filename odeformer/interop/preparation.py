"""What a pretrained image model's pixels went through before they reached it."""

import dataclasses
import os
from typing import Any

import numpy as np

from odeformer.interop.hub import find_folder
from odeformer.interop.weights import read_json

FILE = "preprocessor_config.json"

# Pillow's numbers of its filters.
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")


@dataclasses.dataclass(frozen=True)
class ImagePreparation:
    """How images are prepared: resized, then cropped, then standardised.

    Attributes:
      resize: (height, width) in pixels, or the shorter side alone; None: not resized.
      crop: (height, width) of the centre that is kept, in pixels; None: all of it.
      resample: how it is resized, by the name of Pillow's filter.
      scale: what pixels of 0 to 255 are multiplied by first.
      mean: of each channel, of scaled pixels.
      std: of each channel, of scaled pixels.
    """

    resize: tuple[int, int] | int | None
    crop: tuple[int, int] | None
    resample: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def standardise(self, pixels: np.ndarray) -> np.ndarray:
        """Standardises pixels, after they were resized and cropped.

            (scale pixels - mean) / std

        Args:
          pixels: [..., channels], 0 to 255.

        Returns:
          float32 of the same shape: a model's images.
        """
        scaled = np.asarray(pixels, np.float32) * np.float32(self.scale)
        return (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)


def load_preparation(folder: str | os.PathLike[str]) -> ImagePreparation:
    """Reads how a pretrained model's images are prepared, from preprocessor_config.json.

    Args:
      folder: as for `load_pretrained`.

    Returns:
      An ImagePreparation.

    Raises:
      ImportError: a name on the Hugging Face Hub, without the package huggingface_hub.
      ValueError: a folder without the file, or a file without what it has to say.
    """
    path = find_folder(folder) / FILE
    raw = read_json(path)

    plain = not raw.get("do_normalize", True)
    missing = [key for key in ("image_mean", "image_std") if key not in raw and not plain]
    if missing:
        raise ValueError(f"{path} lacks {' and '.join(missing)}: take them from the model's page")

    resample = raw.get("resample", 2)
    if resample not in range(len(_FILTERS)):
        raise ValueError(
            f"{path} says resample={resample!r}; 0 to {len(_FILTERS) - 1} are accepted, Pillow's "
            f"{', '.join(_FILTERS)}: correct the file"
        )

    scale = raw.get("rescale_factor", 1 / 255) if raw.get("do_rescale", True) else 1.0
    return ImagePreparation(
        resize=_side(path, raw["size"]) if raw.get("do_resize", True) and "size" in raw else None,
        crop=_sides(path, raw["crop_size"]) if raw.get("do_center_crop") else None,
        resample=_FILTERS[resample],
        scale=scale,
        mean=(0.0,) if plain else tuple(raw["image_mean"]),
        std=(1.0,) if plain else tuple(raw["image_std"]),
    )


def _side(path: os.PathLike[str], size: Any) -> tuple[int, int] | int:
    """A size, or its shorter side."""
    if isinstance(size, dict) and set(size) == {"shortest_edge"}:
        return size["shortest_edge"]

    return _sides(path, size)


def _sides(path: os.PathLike[str], size: Any) -> tuple[int, int]:
    """Height and width of a size, which is a side or a mapping."""
    if isinstance(size, int):
        return size, size

    if not isinstance(size, dict) or not {"height", "width"} <= size.keys():
        raise ValueError(f"{path} holds a size that has no height and width: {size!r}")

    return size["height"], size["width"]
