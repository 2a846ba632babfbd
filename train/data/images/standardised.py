"""Images of a data set, prepared as another model's were."""

import dataclasses
import math
from typing import Any

import jax

from odeformer.interop import ImagePreparation
from train.data.images.arrays import standardise
from train.data.images.checks import check_channels
from train.data.images.crops import BY_DEFAULT, Crop
from train.data.images.records import Records
from train.errors import warn

_FULL = 255.0  # of the pixels that published preparations are for


class Standardised:
    """Another split, whose pixels have another mean and deviation."""

    def __init__(self, split: Any, mean: tuple[float, ...], std: tuple[float, ...]):
        self._split, self.mean, self.std = split, mean, std

    def __len__(self) -> int:
        return len(self._split)

    def __getattr__(self, name: str) -> Any:
        # Where an instance is unpickled, it has no split to ask yet.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._split, name)

    def standardise(self, images: jax.Array) -> jax.Array:
        """Fractions of the peak -> the model's images, float32."""
        return standardise(images, self.mean, self.std)


def as_prepared(split: Any, preparation: ImagePreparation) -> Standardised:
    """Returns a split whose images are prepared as a pretrained model's were.

        (factor image / peak - mean) / std,    factor = 255 scale

    Crops of images of varying size follow it too, where they are cut as they are read.

    Args:
      split: meets `ImageSplit`.

    Raises:
      BadInput: a mean or a deviation of another number of channels.
    """
    # A preparation of pixels up to 255, or of those that the data set has.
    is_own = math.isclose(preparation.scale * split.peak, 1.0)
    factor = 1.0 if is_own else _FULL * preparation.scale

    channels = split.image_shape[-1]
    mean, std = (
        tuple(value / factor for value in _by_channel(moment, channels))
        for moment in (preparation.mean, preparation.std)
    )
    return Standardised(_cropped(split, preparation), mean, std)


def _by_channel(moment: tuple[float, ...], channels: int) -> tuple[float, ...]:
    check_channels(len(moment), channels)
    return moment * channels if len(moment) == 1 else moment


def _cropped(split: Any, preparation: ImagePreparation) -> Any:
    """The split with the preparation's crop; itself, with a warning, where it has other crops."""
    wanted = _crop(preparation)
    if wanted is None or not split.is_cropped:
        return split
    if isinstance(split, Records):
        return dataclasses.replace(split, evaluation=wanted)

    if wanted != BY_DEFAULT:
        warn(
            f"images are cropped as the trainer's evaluation does ({BY_DEFAULT}), and not as the "
            f"pretrained model's were ({wanted}): the set is kept in memory, cropped"
        )
    return split


def _crop(preparation: ImagePreparation) -> Crop | None:
    """How a preparation cuts images; None where it does not."""
    resize, crop = preparation.resize, preparation.crop
    if resize is None:
        return None

    # Without a crop a pair of sides is filled by the whole image, whatever its ratio is.
    if crop is None:
        return Crop(1.0, isinstance(resize, int), preparation.resample)
    shorter = resize if isinstance(resize, int) else min(resize)
    return Crop(min(crop) / shorter, isinstance(resize, int), preparation.resample)
