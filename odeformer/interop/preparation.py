"""What a pretrained image model's pixels went through before they reached it."""

import dataclasses
import math
import os
import pathlib
from typing import Any

import numpy as np

from odeformer.interop import timm_vit
from odeformer.interop.file_checks import check_filter, check_moments, check_size
from odeformer.interop.hub import find_folder
from odeformer.interop.timm_checks import check_timm
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


def has_preparation(folder: str | os.PathLike[str]) -> bool:
    """Returns whether a pretrained model's folder says how its images are prepared.

    Args:
      folder: as for `load_pretrained`.

    Raises:
      ImportError: a name on the Hugging Face Hub, without the package huggingface_hub.
      ValueError: no folder, or a config.json that is no JSON.
    """
    place = find_folder(folder)
    config = place / "config.json"
    return (place / FILE).exists() or (config.exists() and timm_vit.is_named(read_json(config)))


def load_preparation(folder: str | os.PathLike[str]) -> ImagePreparation:
    """Reads how a pretrained model's images are prepared.

    From preprocessor_config.json, or of a model of timm from its config.json.

    Args:
      folder: as for `load_pretrained`.

    Returns:
      An ImagePreparation.

    Raises:
      ImportError: a name on the Hugging Face Hub, without the package huggingface_hub.
      ValueError: a folder without the file, or a file without what it has to say.
    """
    place = find_folder(folder)
    path, config = place / FILE, place / "config.json"
    if not path.exists() and config.exists() and timm_vit.is_named(raw := read_json(config)):
        return _of_timm(config, raw.get("pretrained_cfg") or {})

    raw = read_json(path)
    check_moments(path, raw)
    resample = raw.get("resample", 2)
    check_filter(path, resample, _FILTERS)

    plain = not raw.get("do_normalize", True)
    return ImagePreparation(
        resize=_side(path, raw["size"]) if raw.get("do_resize", True) and "size" in raw else None,
        crop=_sides(path, raw["crop_size"]) if raw.get("do_center_crop") else None,
        resample=_FILTERS[resample],
        scale=raw.get("rescale_factor", 1 / 255) if raw.get("do_rescale", True) else 1.0,
        mean=(0.0,) if plain else tuple(raw["image_mean"]),
        std=(1.0,) if plain else tuple(raw["image_std"]),
    )


def _of_timm(path: pathlib.Path, raw: dict[str, Any]) -> ImagePreparation:
    """What timm does with an image before its model is evaluated."""
    check_timm(path, raw, _FILTERS)
    _, height, width = raw["input_size"]
    scaled = [math.floor(side / (raw.get("crop_pct") or 0.875)) for side in (height, width)]

    # In the middle of the image, of which the shorter side is kept; or all of it, squashed.
    is_squashed = raw.get("crop_mode") == "squash"
    mean, std = (tuple(raw[key]) for key in ("mean", "std"))
    return ImagePreparation(
        resize=(scaled[0], scaled[1]) if is_squashed else scaled[0],
        crop=(height, width),
        resample=raw.get("interpolation", "bilinear"),
        scale=1 / 255,
        mean=mean,
        std=std,
    )


def _side(path: pathlib.Path, size: Any) -> tuple[int, int] | int:
    """A size, or its shorter side."""
    if isinstance(size, dict) and set(size) == {"shortest_edge"}:
        return size["shortest_edge"]

    return _sides(path, size)


def _sides(path: pathlib.Path, size: Any) -> tuple[int, int]:
    """Height and width of a size, which is a side or a mapping."""
    check_size(path, size)
    return (size, size) if isinstance(size, int) else (size["height"], size["width"])
