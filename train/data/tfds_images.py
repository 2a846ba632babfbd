"""Image sets of tensorflow-datasets, read where they lie prepared, without TensorFlow."""

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console
from rich.progress import track

from train.data import tfds_sets
from train.data.arrays import Images, Split, channel_moments
from train.data.config import ImageDataConfig
from train.data.stream import Records, read_records
from train.errors import BadInput

_CHUNK = 1024  # records read and decoded at a time


def load(config: ImageDataConfig, image_size: tuple[int, int], seed: int = 0) -> dict[str, Split]:
    """Returns the splits 'train', 'validation' and 'test' of a prepared set.

    A set whose images have one size is decoded once into memory; of others the records are decoded
    as they are read, cropped to image_size. The test split is the set's 'test', or its
    'validation' where it has no labelled test split (ImageNet); the validation split is its
    'validation', or the last `config.validation` examples of 'train'.

    Args:
      config: name, data_dir, validation, skip_corrupt, and augment.crop_min_area for the crops.
      image_size: height and width in pixels of images of varying size.
      seed: of the crops made while reading.

    Raises:
      BadInput: a set that is not there, is not one of labelled images, lacks examples, or holds a
        record that cannot be read (unless config.skip_corrupt).
    """
    builder = tfds_sets.find(config.name, config.data_dir, own=("digits",))
    _check_features(builder)
    shape = builder.info.features["image"].shape
    sources = {
        name: builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        for name, split in _split_names(builder, config).items()
    }
    classes = builder.info.features["label"].num_classes
    if None in shape:
        return {
            name: Records(
                source,
                split=f"{config.name}/{name}",
                classes=classes,
                image_size=image_size,
                crop_min_area=config.augment.crop_min_area if name == "train" else 0.0,
                seed=seed,
                skip_corrupt=config.skip_corrupt,
            )
            for name, source in sources.items()
        }
    arrays = {
        name: _decode_all(source, shape, classes, f"{config.name}/{name}", config.skip_corrupt)
        for name, source in sources.items()
    }
    mean, std = channel_moments(arrays["train"][0], peak=255.0)
    return {
        name: Images(images, labels, classes=classes, peak=255.0, mean=mean, std=std)
        for name, (images, labels) in arrays.items()
    }


def _check_features(builder: Any) -> None:
    features: dict[str, Any] = dict(builder.info.features)
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise BadInput(
            f"config.data.name: {builder.name} has the features {', '.join(features)}: a set with "
            "'image' and a class 'label' is needed"
        )


def _split_names(builder: Any, config: ImageDataConfig) -> dict[str, str]:
    """Which part of the set serves as which split, in tfds' notation."""
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    test = "test" if "test" in sizes else "validation"
    for name in ("train", test):
        if not sizes.get(name):
            raise BadInput(
                f"config.data.name: {config.name} has no examples in a split {name!r}; it has "
                f"{sizes}"
            )
    if test == "test" and sizes.get("validation"):
        return {"train": "train", "validation": "validation", "test": "test"}
    held_out = config.validation
    if not 0 < held_out < sizes["train"]:
        raise BadInput(
            f"config.data.validation={held_out}: {config.name} has no validation split beside the "
            f"test split, so between 1 and {sizes['train'] - 1} of its {sizes['train']} training "
            "examples are held out"
        )
    return {"train": f"train[:-{held_out}]", "validation": f"train[-{held_out}:]", "test": test}


def _decode_all(
    source: Any, shape: tuple[int, ...], classes: int, split: str, skip_corrupt: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a whole split: images [N, *shape] uint8 and labels [N] int32."""
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    good, skipped = 0, 0
    for number, image, label in _decoded(source, shape, split):
        if isinstance(image, Exception):
            if not skip_corrupt:
                raise BadInput(
                    f"{split}: record {number} cannot be decoded ({image}): prepare the set anew, "
                    "or set config.data.skip_corrupt to leave such records out"
                ) from image
            skipped += 1
            continue
        if not 0 <= label < classes:
            raise BadInput(
                f"{split}: record {number} has label {label}; the set's labels are 0 to "
                f"{classes - 1}: prepare the set anew"
            )
        images[good], labels[good] = image, label
        good += 1
    if skipped:
        Console(stderr=True).print(f"{split}: left out {skipped} of {len(source)} records")
    if not good:
        raise BadInput(f"{split} has no example that can be read")
    return images[:good], labels[:good]


def _decoded(
    source: Any, shape: tuple[int, ...], split: str
) -> Iterator[tuple[int, np.ndarray | Exception, int]]:
    """Yields (number, image or the error in its place, label) of each record."""

    def decode(record: Any) -> np.ndarray | Exception:
        if isinstance(record, Exception):
            return record
        try:
            image = np.asarray(Image.open(io.BytesIO(record["image"]))).reshape(shape)
        except (OSError, ValueError, SyntaxError) as error:
            return error
        return image

    starts = range(0, len(source), _CHUNK)
    bar = Console(stderr=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in track(
            starts, f"decoding {split}", console=bar, transient=True, disable=not bar.is_terminal
        ):
            records = read_records(source, range(start, min(start + _CHUNK, len(source))))
            for i, image in enumerate(pool.map(decode, records)):
                readable = not isinstance(image, Exception)
                yield start + i, image, int(records[i]["label"]) if readable else -1
