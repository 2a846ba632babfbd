"""Labelled images that fit in memory."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from train.data.split import Origin, Split

Moment = tuple[float, ...] | jax.Array  # of the pixels, by channel


class ImageSplit(Split, Protocol):
    """One split of a set of labelled images: `gather` returns image uint8, label, index int32."""

    @property
    def classes(self) -> int:
        """Number of classes."""
        ...

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of the training pixels by channel, as a fraction of the peak."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of the training pixels by channel, as a fraction of the peak."""
        ...

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and channels of every image that `gather` returns."""
        ...

    @property
    def peak(self) -> float:
        """The pixel value that stands for 1."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels; () where the set has none."""
        ...

    @property
    def is_cropped(self) -> bool:
        """Whether images are of any size, and were cropped and scaled by this split."""
        ...

    def to_unit(self, images: jax.Array) -> jax.Array:
        """Pixels uint8 -> fractions of the peak, the pixel value that stands for 1, float32."""
        ...

    def standardise(self, images: jax.Array) -> jax.Array:
        """Fractions of the peak -> about mean 0 and standard deviation 1, float32."""
        ...


@dataclasses.dataclass(frozen=True)
class Images:
    """A split in memory.

    Attributes:
      images: [N, height, width, channels] uint8.
      labels: [N] int32, from 0 to classes - 1.
      classes: number of classes.
      peak: the pixel value that stands for 1.
      mean: mean of the training split's pixels by channel, as a fraction of the peak.
      std: standard deviation of the same.
      class_names: of all classes; () where the set does not name them.
      is_cropped: whether the images were of any size, and are their evaluation crops.
      origin: the files that the set was read from, of a folder.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: int
    peak: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()
    is_cropped: bool = False
    origin: Origin | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and channels."""
        return self.images.shape[1:]

    def gather(self, index: np.ndarray, visit: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns the examples: image, label and index. Nothing is random; visits are ignored."""
        return {
            "image": self.images[index],
            "label": self.labels[index],
            "index": index.astype(np.int32),
        }

    def to_unit(self, images: jax.Array) -> jax.Array:
        """Pixels uint8 -> fractions of the peak, float32."""
        return images.astype(jnp.float32) / self.peak

    def standardise(self, images: jax.Array) -> jax.Array:
        """Fractions of the peak -> mean 0 and standard deviation 1 by channel, float32."""
        return standardise(images, self.mean, self.std)


def standardise(images: jax.Array, mean: Moment, std: Moment) -> jax.Array:
    """Returns (images - mean) / std, by channel.

    Args:
      images: [..., channels] float32.
      mean: [channels].
      std: [channels].
    """
    # Ranks are made equal here: the program also runs under JAX's strict promotion of ranks.
    by_channel = (1,) * (images.ndim - 1) + (-1,)
    mean = jnp.asarray(mean).reshape(by_channel)
    std = jnp.asarray(std).reshape(by_channel)

    return (images - mean) / std


def channel_moments(images: np.ndarray, peak: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation by channel of uint8 images, as fractions of the peak."""
    levels = np.arange(256) / peak
    means, stds = [], []

    for channel in range(images.shape[-1]):
        # From the counts of the 256 values: exact, and without a copy of the images in floats.
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        shares = counts / images[..., 0].size

        mean = float(shares @ levels)
        means.append(mean)

        # A channel that is the same everywhere, as blue in red images, is divided by 1, not by 0.
        stds.append(float(np.sqrt(shares @ (levels - mean) ** 2)) or 1.0)

    return tuple(means), tuple(stds)
