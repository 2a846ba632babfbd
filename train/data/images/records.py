"""Image sets of varying size: records decoded, cropped and scaled as they are read."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from train.data.cuts import record_number, record_place
from train.data.images.arrays import standardise
from train.data.images.checks import bad_label, undecodable
from train.data.images.crops import BY_DEFAULT, Crop, crop, evaluation_crop, random_box
from train.data.images.pixels import Decoded, Encoded
from train.data.split import Origin
from train.errors import BadInput

# Of the training pixels by channel, as every published recipe has them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PEAK = 255.0
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: grey is made of colours with these weights

Key = tuple[int, int, int]  # seed, visit, index: all that a random crop depends on


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """A split whose images are decoded and cropped to one size as they are read.

    A training crop is Inception's: of a random part of the area and a random ratio of the sides,
    at a random place (Szegedy et al. 2015, arXiv 1409.4842). An evaluation crop is the centre of
    the image scaled to 8/7 of the crop (Krizhevsky et al. 2012). Both are scaled bicubically.

    Attributes:
      source: random access to records with 'image', encoded bytes or a Decoded, and 'label'; such
        as a data source of tensorflow-datasets whose images are not decoded.
      split: its name in messages.
      classes: number of classes.
      image_size: height and width of the crops, in pixels.
      crop_min_area: least fraction of an image's area in a training crop; 0: no training crops.
      seed: of the training crops.
      skip_corrupt: read the next record in place of one that cannot be decoded, rather than stop.
      channels: of the images that are returned, whatever the files hold; see `pixels`.
      mean: mean of the training pixels by channel, as a fraction of the peak, 255.
      std: standard deviation of the same.
      class_names: of all classes; () where the set does not name them.
      origin: the files that the set was read from, of a folder.
      labels: [N] int32, where they are known without reading the records.
      evaluation: how evaluation crops are cut.
    """

    is_cropped: ClassVar[bool] = True
    peak: ClassVar[float] = PEAK

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
    class_names: tuple[str, ...] = ()
    origin: Origin | None = None
    labels: np.ndarray | None = None
    evaluation: Crop = BY_DEFAULT
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

    def gather(self, index: np.ndarray, visit: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns the examples, cropped.

        Args:
          index: [n] records to return.
          visit: [n]; a training crop is a function of the seed, the visit and the index alone; None
            for evaluation crops.

        Returns:
          image uint8 [n, height, width, channels], label int32 [n], and the index int32 [n], which
          is unchanged where the next record replaces a corrupt one.

        Raises:
          BadInput: a record that cannot be decoded, unless skip_corrupt, or whose label is outside
            the classes; the message names the record.
        """
        images = np.empty((len(index), *self.image_shape), np.uint8)
        labels = np.empty(len(index), np.int32)

        keys: list[Key | None] = [None] * len(index)
        if visit is not None and self.crop_min_area:
            keys = [(self.seed, int(v), int(i)) for v, i in zip(visit, index, strict=True)]

        for i, record in enumerate(read_records(self.source, index)):
            images[i], labels[i] = self._example(int(index[i]), record, keys[i])

        return {"image": images, "label": labels, "index": index.astype(np.int32)}

    def to_unit(self, images: jax.Array) -> jax.Array:
        """Pixels uint8 -> fractions of the peak, float32."""
        return images.astype(jnp.float32) / PEAK

    def standardise(self, images: jax.Array) -> jax.Array:
        """Fractions of the peak -> about mean 0 and standard deviation 1, float32."""
        return standardise(images, self.mean, self.std)

    def _example(self, index: int, record: Any, key: Key | None) -> tuple[np.ndarray, int]:
        """Returns image and label of a record, or of the first good one after it."""
        for attempt in range(len(self)):
            place = (index + attempt) % len(self)
            if attempt:
                (record,) = read_records(self.source, [place])

            try:
                if isinstance(record, Exception):
                    raise record
                image = self._decode(record["image"], key)
            # Decoders raise errors of any kind on damaged bytes.
            except Exception as error:
                self._skip(place, record, error)
                continue

            label = int(record["label"])
            if not 0 <= label < self.classes:
                where = record_place(self.source, place)
                raise bad_label(self._name(place, record), label, self.classes, where)
            return image, label

        raise BadInput(f"{self.split} has no record that can be decoded: prepare the set again")

    def _skip(self, place: int, record: Any, error: Exception) -> None:
        """Notes a corrupt record, or raises where it is not to be skipped."""
        name, where = self._name(place, record), record_place(self.source, place)
        if not self.skip_corrupt:
            raise undecodable(name, error, "read the next record", where) from error

        # Every epoch meets the record again: one warning is enough.
        if place not in self._corrupt:
            self._corrupt.add(place)
            logging.warning("left out %s: %s%s", name, error, where)

    def _name(self, place: int, record: Any) -> str:
        """Names a record by its number, and by its original file where the set keeps that name."""
        fields = {} if isinstance(record, Exception) else record
        name = fields.get("file_name", fields.get("id"))
        text = name.decode(errors="replace") if isinstance(name, bytes) else name

        number = record_number(self.source, place)
        return f"{self.split}: record {number}" + (f" ({text})" if text is not None else "")

    def _decode(self, content: bytes | Decoded, key: Key | None) -> np.ndarray:
        """Decodes, crops and scales an image."""
        image = content if isinstance(content, Decoded) else Encoded(content)
        if key is None:
            return evaluation_crop(image, self.image_shape, self.evaluation)

        box = random_box(image.size, self.crop_min_area, np.random.default_rng(key))
        return crop(image, self.image_shape, box)


def published_moments(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and standard deviation of ImageNet's pixels by channel, as published.

    Args:
      channels: 1 (grey), 2 (grey and alpha), 3 or 4 (colours and alpha).
    """
    moments = [IMAGENET_MEAN, IMAGENET_STD]

    # Grey is the luma of the colours. Its deviation is the luma of theirs if the three channels
    # move together, which is assumed.
    if channels < 3:
        moments = [(float(np.dot(_LUMA, moment)),) for moment in moments]

    # Alpha of mean and deviation 0.5 moves to [-1, 1].
    alpha = (0.5,) if channels % 2 == 0 else ()
    return moments[0] + alpha, moments[1] + alpha


def read_records(source: Any, index: Sequence[int] | np.ndarray) -> list[Any]:
    """Returns a record for each index, or the Exception that reading it raised.

    Args:
      source: a data source of tensorflow-datasets.
      index: the records to read.
    """
    places = [int(place) for place in index]
    try:
        return list(source.__getitems__(places))
    # One bad record fails the whole read, with an error of the file format's own library: read
    # again one by one to find it.
    except Exception:
        return [_read_record(source, place) for place in places]


def _read_record(source: Any, place: int) -> Any:
    try:
        return source[place]
    except Exception as error:
        return error
