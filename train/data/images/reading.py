"""The files of a folder, read: once into memory, or their sizes alone where they do not fit."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from train.data.folders.kinds import IMAGES
from train.data.folders.listing import LabelledFile, Listing
from train.data.folders.reading import good_places, on_files, origin_of
from train.data.images.crops import evaluation_crop
from train.data.images.pixels import Decoded, Encoded, probe
from train.data.split import Origin

# Larger sets are read while the run trains: of the pixels that would be kept.
MEMORY_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True, eq=False)
class Readable:
    """The files that can be read, and what is kept of them.

    Attributes:
      files: N files.
      labels: [N] int32.
      is_exact: whether all have the model's size, and are taken as they are.
      origin: says what the whole folder held.
      crops: [N, height, width, channels] uint8, as evaluation sees them; None where the set does
        not fit in memory.
      wholes: the whole images, where training crops are cut from them; else None.
    """

    files: Sequence[LabelledFile]
    labels: np.ndarray
    is_exact: bool
    origin: Origin
    crops: np.ndarray | None
    wholes: Sequence[Decoded] | None


@dataclasses.dataclass(frozen=True)
class _Read:
    """What is kept of a file."""

    digest: str  # of what the fingerprint holds
    crop: np.ndarray | None = None
    whole: Decoded | None = None


def read_images(listing: Listing, image_shape: tuple[int, int, int], cuts_crops: bool) -> Readable:
    """Reads the files of a folder; those that cannot be read are named and left out.

    Args:
      listing: of the folder.
      image_shape: height and width in pixels, and channels, of the model's images.
      cuts_crops: whether images of other sizes are cropped again at each visit of training.

    Raises:
      BadInput: no file can be read, or fewer than two of a class.
    """
    height, width, _ = image_shape
    sizes = list(on_files(listing.files, _size, "reading the images' sizes"))
    is_exact = all(size == (width, height) for size in sizes if not isinstance(size, Exception))

    keeps_whole = cuts_crops and not is_exact
    fits = _memory(sizes, image_shape, keeps_whole) <= MEMORY_BYTES
    reader = _make_reader(image_shape, is_exact, keeps_whole) if fits else _stat

    # A file that is cut short has a size and no pixels; of large sets the sizes alone are known.
    contents = on_files(listing.files, reader, "reading the images")
    read: list[Any] = [
        size if isinstance(size, Exception) else found
        for size, found in zip(sizes, contents, strict=True)
    ]
    good = good_places(listing, read, IMAGES)
    return Readable(
        files=[listing.files[place] for place in good],
        labels=np.array([listing.files[place].label for place in good], np.int32),
        is_exact=is_exact,
        origin=origin_of(listing, [getattr(found, "digest", "") for found in read], good),
        crops=np.stack([read[place].crop for place in good]) if fits else None,
        wholes=[read[place].whole for place in good] if fits and keeps_whole else None,
    )


def _size(file: LabelledFile) -> tuple[int, int]:
    size, _ = probe(file.path)
    return size


def _memory(sizes: Sequence[Any], image_shape: tuple[int, ...], keeps_whole: bool) -> int:
    """Bytes of the pixels that would be kept."""
    height, width, channels = image_shape
    found = [size for size in sizes if not isinstance(size, Exception)]
    whole = sum(size[0] * size[1] for size in found) if keeps_whole else 0
    return (len(found) * height * width + whole) * channels


def _stat(file: LabelledFile) -> _Read:
    # To read all contents of a large set would take as long as an epoch.
    return _Read(str(file.path.stat().st_size))


def _make_reader(
    image_shape: tuple[int, int, int], is_exact: bool, keeps_whole: bool
) -> Callable[[LabelledFile], _Read]:
    """Returns the function that decodes a file."""

    def read(file: LabelledFile) -> _Read:
        content = file.path.read_bytes()
        digest, image = hashlib.sha256(content).hexdigest(), Encoded(content)
        if not is_exact and not keeps_whole:
            return _Read(digest, evaluation_crop(image, image_shape))

        pixels = np.asarray(image.decode(image_shape[-1])[0])
        if is_exact:
            return _Read(digest, pixels.reshape(image_shape))

        # From an array: Pillow's image would still have the orientation that it was turned by.
        whole = Decoded(Image.fromarray(pixels))
        return _Read(digest, evaluation_crop(whole, image_shape), whole)

    return read
