"""Image sets of varying size: records decoded, cropped and scaled as they are read."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from PIL import Image

from train.data.cuts import record_number
from train.data.images.arrays import standardise
from train.data.images.pixels import Encoded
from train.errors import BadInput

# Of the training pixels by channel, as every published recipe has them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as grey is made of colours
PEAK = 255.0

CENTRE = 0.875  # of each side that an evaluation crop keeps
RATIOS = (3 / 4, 4 / 3)  # of width to height of a training crop
_TRIES = 10

Box = tuple[float, float, float, float]  # left, upper, right, lower in pixels
Key = tuple[int, int, int]  # of what is drawn at random: seed, draw, index


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """A split whose images are decoded and cropped to one size as they are read.

    A training crop is Inception's: of a random part of the area and a random ratio of the sides,
    somewhere in the image (Szegedy et al. 2015, arXiv 1409.4842). An evaluation crop is the centre
    of the image scaled to 8/7 of the crop (Krizhevsky et al. 2012). Both are scaled bicubically.

    Attributes:
      source: random access to records with 'image', encoded bytes, and 'label'; a data source of
        tensorflow-datasets whose images are not decoded.
      split: its name in messages.
      classes: number of classes.
      image_size: height and width of the crops, in pixels.
      crop_min_area: least part of an image's area in a training crop; 0: no training crops.
      seed: of the training crops.
      skip_corrupt: read the next record in place of one that cannot be decoded, rather than stop.
      channels: of the images that are returned, whatever the files hold; see `pixels`.
      mean: of the training pixels by channel, as a fraction of the brightest.
      std: their standard deviation, likewise.
    """

    source: Any
    split: str
    classes: int
    image_size: tuple[int, int]
    crop_min_area: float = 0.0
    seed: int = 0
    skip_corrupt: bool = False
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    _corrupt: set[int] = dataclasses.field(default_factory=set, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and channels."""
        return (*self.image_size, self.channels)

    @property
    def skipped(self) -> int:
        """Number of records that this process met and could not decode."""
        return len(self._corrupt)

    def gather(self, index: np.ndarray, draw: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns the batch of these examples.

        Args:
          index: [n], of the records.
          draw: [n], the number of the draw of each: a training crop is a function of the seed, the
            draw and the index alone; None for evaluation crops.

        Returns:
          image uint8 [n, height, width, channels], label int32 [n], and the index int32 [n] as it
          was given, also where the next record stands in for a corrupt one.

        Raises:
          BadInput: a record that cannot be decoded, unless skip_corrupt, or whose label is none of
            the classes; the message names the record.
        """
        images = np.empty((len(index), *self.image_shape), np.uint8)
        labels = np.empty(len(index), np.int32)
        keys: list[Key | None] = [None] * len(index)
        if draw is not None and self.crop_min_area:
            keys = [(self.seed, int(d), int(i)) for d, i in zip(draw, index, strict=True)]
        for i, record in enumerate(read_records(self.source, index)):
            images[i], labels[i] = self._example(int(index[i]), record, keys[i])
        return {"image": images, "label": labels, "index": index.astype(np.int32)}

    def to_unit(self, images: jax.Array) -> jax.Array:
        """Pixels uint8 -> fractions of the brightest, float32."""
        return images.astype(jnp.float32) / PEAK

    def standardise(self, images: jax.Array) -> jax.Array:
        """Fractions of the brightest -> about mean 0 and standard deviation 1, float32."""
        return standardise(images, self.mean, self.std)

    def _example(self, number: int, record: Any, key: Key | None) -> tuple[np.ndarray, int]:
        """Returns image and label of a record, or of the first good one behind it."""
        for place in range(number, number + len(self)):
            place %= len(self)
            if place != number:
                (record,) = read_records(self.source, [place])
            try:
                if isinstance(record, Exception):
                    raise record
                image = self._decode(record["image"], key)
            except Exception as error:  # decoders raise whatever bytes make of them
                if not self.skip_corrupt:
                    raise BadInput(
                        f"{self._name(place, record)} cannot be decoded ({error}): prepare the set "
                        "anew, or set config.data.skip_corrupt to read the next record instead"
                    ) from error
                if place not in self._corrupt:
                    self._corrupt.add(place)
                    logging.warning("left out %s: %s", self._name(place, record), error)
                continue
            if not 0 <= record["label"] < self.classes:
                raise BadInput(
                    f"{self._name(place, record)} has label {record['label']}; the labels are 0 to "
                    f"{self.classes - 1}: prepare the set anew"
                )
            return image, int(record["label"])
        raise BadInput(f"{self.split} has no record that can be decoded: prepare the set anew")

    def _name(self, place: int, record: Any) -> str:
        """Names a record by its place, and by the file it was made of where it knows it."""
        known = {} if isinstance(record, Exception) else record
        name = known.get("file_name", known.get("id"))
        text = name.decode(errors="replace") if isinstance(name, bytes) else name
        number = record_number(self.source, place)
        return f"{self.split}: record {number}" + (f" ({text})" if text is not None else "")

    def _decode(self, content: bytes, key: Key | None) -> np.ndarray:
        height, width = self.image_size
        encoded = Encoded(content)
        if key is None:
            box = _centre_box(encoded.size, width / height, CENTRE)
        else:
            box = _random_box(encoded.size, self.crop_min_area, np.random.default_rng(key))
        # A large JPEG is decoded at 1/2, 1/4 or 1/8: quicker, and still at no less than twice
        # the crop's size, below which it would show.
        zoom = 2 * max(width / (box[2] - box[0]), height / (box[3] - box[1]))
        image, scale = encoded.decode(self.channels, zoom)
        left, upper, right, lower = (scale * side for side in box)
        box = (left, upper, right, lower)
        crop = image.resize((width, height), Image.Resampling.BICUBIC, box)
        return np.asarray(crop).reshape(self.image_shape)


def published_moments(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and standard deviation of ImageNet's pixels by channel, as published.

    Of grey: those of the colours' luma, their deviations taken to go together. Of alpha: 0.5 each,
    which moves it to [-1, 1].

    Args:
      channels: 1 (grey), 2 (grey and alpha), 3 or 4 (colours and alpha).
    """
    moments = [IMAGENET_MEAN, IMAGENET_STD]
    if channels < 3:
        moments = [(float(np.dot(_LUMA, moment)),) for moment in moments]
    alpha = (0.5,) if channels % 2 == 0 else ()
    return moments[0] + alpha, moments[1] + alpha


def read_records(source: Any, index: Sequence[int] | np.ndarray) -> list[Any]:
    """Reads records together; where that fails one by one, with the error in the bad one's place.

    Args:
      source: a data source of tensorflow-datasets.
      index: of the records.

    Returns:
      A record or an Exception for each index.
    """
    places = [int(place) for place in index]
    try:
        return list(source.__getitems__(places))
    except Exception:  # the reader raises whatever its format's library does
        return [_read_record(source, place) for place in places]


def _read_record(source: Any, place: int) -> Any:
    try:
        return source[place]
    except Exception as error:
        return error


def _centre_box(size: tuple[int, int], ratio: float, part: float = 1.0) -> Box:
    """Returns a part of the largest box of a ratio of width to height in the image's centre."""
    width, height = size
    box_width = part * min(width, height * ratio)
    box_height = box_width / ratio
    left, upper = (width - box_width) / 2, (height - box_height) / 2
    return left, upper, left + box_width, upper + box_height


def _random_box(size: tuple[int, int], min_area: float, rng: np.random.Generator) -> Box:
    """Returns Inception's crop: random in area, ratio and place; centred where none fits."""
    width, height = size
    area = width * height * rng.uniform(min_area, 1, _TRIES)
    ratio = np.exp(rng.uniform(math.log(RATIOS[0]), math.log(RATIOS[1]), _TRIES))
    widths, heights = np.sqrt(area * ratio), np.sqrt(area / ratio)
    fits = (widths <= width) & (heights <= height)
    if not fits.any():
        return _centre_box(size, float(np.clip(width / height, *RATIOS)))
    box_width, box_height = float(widths[fits.argmax()]), float(heights[fits.argmax()])
    left, upper = rng.uniform() * (width - box_width), rng.uniform() * (height - box_height)
    return left, upper, left + box_width, upper + box_height
