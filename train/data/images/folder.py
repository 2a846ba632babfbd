"""Images of a folder: a folder per class, or a CSV of files and labels."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from train.config.data import ImageDataConfig
from train.data.folders.kinds import IMAGES
from train.data.folders.listing import LabelledFile, Listing, list_files
from train.data.folders.parts import complete_parts, present_parts
from train.data.images import checks
from train.data.images.arrays import Images, channel_moments
from train.data.images.pixels import Decoded
from train.data.images.reading import Readable, read_images
from train.data.images.records import Records, published_moments
from train.data.split import Split

# Of the config: how many images each split that is lacking takes.
_KEYS = {"test": "config.data.test_fraction", "validation": "config.data.validation_examples"}


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
    """Files as records, which `Records` reads like those of tensorflow-datasets.

    Attributes:
      files: the files.
      images: their images, where these are kept in memory.
    """

    files: Sequence[LabelledFile]
    images: Sequence[Decoded] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file = self.files[index]
        image = file.path.read_bytes() if self.images is None else self.images[index]
        return {"image": image, "label": file.label, "file_name": file.name}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]


def load(
    config: ImageDataConfig, image_shape: tuple[int, int, int], seed: int = 0
) -> dict[str, Split]:
    """Returns the splits 'train', 'validation' and 'test' of a folder's images.

    Files that cannot be read are named and left out. Images that all have the model's size are
    taken as they are; others are cropped and scaled to it, as those of prepared sets of varying
    size. What fits in memory is decoded once. Splits that the folder has are taken; those that it
    lacks are cut off by a fixed seed, each class in proportion: `config.test_fraction` of the
    images to test on, `config.validation_examples` of the others to validate on.

    Args:
      config: the folder, how its splits are made, and augment.crop_min_area for training crops.
      image_shape: height and width in pixels, and channels, of the model's images.
      seed: of the crops made while reading.

    Raises:
      BadInput: a folder that is missing or empty, without two classes of two images or more that
        can be read, or too small for its splits.
    """
    listing = list_files(config.files, IMAGES)
    found = read_images(listing, image_shape, cuts_crops=bool(config.augment.crop_min_area))
    parts = _parts(config, listing, found)

    # The moments are the training pixels', in every split: nothing of a test image is used. Of a
    # large set they would cost a pass over all of it.
    if found.crops is None:
        mean, std = published_moments(image_shape[-1])
    else:
        mean, std = channel_moments(found.crops[parts["train"]], peak=255.0)

    same: dict[str, Any] = dict(
        classes=len(listing.classes), class_names=listing.classes, origin=found.origin
    )
    same |= dict(mean=mean, std=std)

    splits: dict[str, Split] = {}
    for name, index in parts.items():
        is_cut = name == "train" and config.augment.crop_min_area > 0
        if found.crops is None or (is_cut and found.wholes is not None):
            area = config.augment.crop_min_area if is_cut else 0.0
            splits[name] = Records(
                _source(found, index),
                split=name,
                image_size=image_shape[:2],
                channels=image_shape[-1],
                crop_min_area=area,
                seed=seed,
                skip_corrupt=True,
                labels=found.labels[index],
                **same,
            )
        else:
            splits[name] = Images(
                found.crops[index],
                found.labels[index],
                peak=255.0,
                is_cropped=not found.is_exact,
                **same,
            )
    return splits


def _source(found: Readable, index: np.ndarray) -> FolderSource:
    images = None if found.wholes is None else [found.wholes[place] for place in index]
    return FolderSource([found.files[place] for place in index], images)


def _parts(config: ImageDataConfig, listing: Listing, found: Readable) -> dict[str, np.ndarray]:
    """The places of each split among the files that can be read, in ascending order."""
    parts = present_parts(found.files, listing.splits)
    trained, lacking = len(parts["train"]), {}

    if "test" in parts:
        checks.check_no_test_fraction(config, "test")
        if "validation" not in parts:
            checks.check_validation(config, trained)
    else:
        lacking["test"] = round(config.test_fraction * trained)
        checks.check_parts(config, trained, lacking["test"])
    if "validation" not in parts:
        lacking["validation"] = config.validation_examples

    return complete_parts(
        parts,
        labels=found.labels,
        classes=listing.classes,
        lacking={name: (_KEYS[name], held_out) for name, held_out in lacking.items()},
        kind=IMAGES,
    )
