"""How images of varying size are cropped and scaled, in training and in evaluation."""

import dataclasses
import math

import numpy as np
from PIL import Image

from train.data.images.pixels import Decodable

CENTRE = 0.875  # of each side that an evaluation crop keeps
RATIOS = (3 / 4, 4 / 3)  # of width to height of a training crop
_TRIES = 10


@dataclasses.dataclass(frozen=True)
class Crop:
    """How evaluation cuts images of varying size.

    Attributes:
      part: of each side of the largest centred box that is kept.
      keeps_ratio: whether that box has the ratio of the sides that is wanted; else it is the whole
        image, which is stretched.
      resample: how it is scaled, by the name of Pillow's filter.
    """

    part: float
    keeps_ratio: bool
    resample: str

    def __str__(self) -> str:
        ratio = "" if self.keeps_ratio else ", stretched"
        return f"the middle {self.part:.1%} of each side{ratio}, {self.resample}"


BY_DEFAULT = Crop(CENTRE, True, "bicubic")

Box = tuple[float, float, float, float]  # left, upper, right, lower in pixels


def centre_box(size: tuple[int, int], ratio: float, part: float = 1.0) -> Box:
    """Returns a part of the largest box in the image's centre that has a given aspect ratio.

    Args:
      size: width and height of the image, in pixels.
      ratio: width of the box divided by its height.
      part: fraction of each side of the largest box.
    """
    width, height = size
    box_width = part * min(width, height * ratio)
    box_height = box_width / ratio

    left, upper = (width - box_width) / 2, (height - box_height) / 2
    return left, upper, left + box_width, upper + box_height


def random_box(size: tuple[int, int], min_area: float, rng: np.random.Generator) -> Box:
    """Returns a box of random area, aspect ratio and place (Inception's crop).

    Args:
      size: width and height of the image, in pixels.
      min_area: least fraction of the image's area.
      rng: source of all that is random.

    Source: Szegedy et al. 2015, arXiv 1409.4842.
    """
    width, height = size

    area = width * height * rng.uniform(min_area, 1, _TRIES)
    ratio = np.exp(rng.uniform(math.log(RATIOS[0]), math.log(RATIOS[1]), _TRIES))
    widths, heights = np.sqrt(area * ratio), np.sqrt(area / ratio)

    # In a very long image no try may fit: then the largest centred box of an allowed ratio.
    fits = (widths <= width) & (heights <= height)
    if not fits.any():
        return centre_box(size, float(np.clip(width / height, *RATIOS)))

    first = fits.argmax()
    box_width, box_height = float(widths[first]), float(heights[first])
    left, upper = rng.uniform() * (width - box_width), rng.uniform() * (height - box_height)
    return left, upper, left + box_width, upper + box_height


def crop(
    image: Decodable, image_shape: tuple[int, ...], box: Box, resample: str = "bicubic"
) -> np.ndarray:
    """Returns a box of an image, scaled: uint8 [height, width, channels].

    Args:
      image: to be cropped.
      image_shape: height, width and channels of what is returned.
      box: of the upright image at its full size.
      resample: the name of Pillow's filter.

    Raises:
      Exception: of any kind that Pillow raises on bytes that it cannot read.
    """
    height, width, channels = image_shape

    # A large JPEG is decoded at 1/2, 1/4 or 1/8: quicker, and still at no less than twice the
    # crop's size, below which the difference would be visible.
    zoom = 2 * max(width / (box[2] - box[0]), height / (box[3] - box[1]))
    pixels, scale = image.decode(channels, zoom)

    left, upper, right, lower = (scale * side for side in box)
    box = (left, upper, right, lower)
    scaled = pixels.resize((width, height), Image.Resampling[resample.upper()], box)

    # Pillow gives an image of one channel no axis for it.
    return np.asarray(scaled).reshape(image_shape)


def evaluation_crop(
    image: Decodable, image_shape: tuple[int, ...], how: Crop = BY_DEFAULT
) -> np.ndarray:
    """Returns the centre of an image, as every evaluation of images of varying size sees it.

    By default it is the part of `image_shape` in the middle of the image scaled to 8/7 of it
    (Krizhevsky et al. 2012).
    """
    height, width, _ = image_shape
    ratio = width / height if how.keeps_ratio else image.size[0] / image.size[1]
    return crop(image, image_shape, centre_box(image.size, ratio, how.part), how.resample)
