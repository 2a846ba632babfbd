"""Labelled images that fit in memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Images:
    """One split of a data set of labelled images.

    Attributes:
      images: [N, height, width, channels] uint8.
      labels: [N] int32, from 0 to classes - 1.
      classes: number of classes.
      peak: the pixel value that stands for 1.
      mean: mean of the training split's pixels by channel, as a fraction of the peak.
      std: their standard deviation, likewise.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: int
    peak: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the batch of these examples: image, label, index."""
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
        return (images - jnp.asarray(self.mean)) / jnp.asarray(self.std)
