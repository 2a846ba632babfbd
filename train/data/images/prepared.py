"""Image sets of tensorflow-datasets, read where they lie prepared, without TensorFlow."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from rich.console import Console
from rich.progress import track

from train.config.data import ImageDataConfig
from train.data import tfds_sets
from train.data.cuts import Part, cut, record_number
from train.data.images.arrays import Images, channel_moments
from train.data.images.pixels import MODES, Encoded
from train.data.images.records import Records, published_moments, read_records
from train.data.split import Split
from train.errors import BadInput

_CHUNK = 1024  # records read and decoded at a time


def load(config: ImageDataConfig, image_size: tuple[int, int], seed: int = 0) -> dict[str, Split]:
    """Returns the splits 'train', 'validation' and 'test' of a prepared set.

    A set whose images have one size is decoded once into memory; of others the records are decoded
    as they are read, cropped to image_size. The test split is the set's 'test', or its
    'validation' where it has no labelled test split (ImageNet); the validation split is its
    'validation', or the last `config.validation_examples` examples of 'train'. A set with a split
    'train' alone is cut by a fixed seed: `config.test_fraction` of the examples are the test split,
    `config.validation_examples` of the others the validation split.

    Args:
      config: name, data_dir, validation_examples, test_fraction, skip_corrupt, and
        augment.crop_min_area for the crops.
      image_size: height and width in pixels of images of varying size.
      seed: of the crops made while reading.

    Raises:
      BadInput: a set that is not there, is not one of labelled images, lacks examples, or holds a
        record that cannot be read (unless config.skip_corrupt).
    """
    builder = tfds_sets.find(config.name, config.data_dir, own=("digits",))
    _check_features(builder)
    shape = builder.info.features["image"].shape
    sources = _sources(builder, config)
    classes = builder.info.features["label"].num_classes
    if None in shape:
        mean, std = published_moments(shape[-1])
        return {
            name: Records(
                source,
                split=split,
                classes=classes,
                image_size=image_size,
                crop_min_area=config.augment.crop_min_area if name == "train" else 0.0,
                seed=seed,
                skip_corrupt=config.skip_corrupt,
                channels=shape[-1],
                mean=mean,
                std=std,
            )
            for name, (split, source) in sources.items()
        }
    arrays = {
        name: _decode_all(source, shape, classes, split, config.skip_corrupt)
        for name, (split, source) in sources.items()
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
    _check_image(builder.name, image)


def _check_image(name: str, image: Any) -> None:
    """Refuses images that are not pixels of 8 or 16 bits in 1 to 4 channels."""
    if image.np_dtype not in (np.uint8, np.uint16):
        raise BadInput(
            f"config.data.name: the images of {name} are of {np.dtype(image.np_dtype)}: a set "
            "whose images are of uint8 or uint16 is needed"
        )
    if len(image.shape) != 3 or image.shape[-1] not in MODES:
        raise BadInput(
            f"config.data.name: the images of {name} are of shape {image.shape}: height, width and "
            "1 to 4 channels are needed"
        )


def _sources(builder: Any, config: ImageDataConfig) -> dict[str, tuple[str, Any]]:
    """The records that serve as each split, and their name in messages."""
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    decoders = {"image": tfds.decode.SkipDecoding()}
    if not sizes.get("train"):
        raise BadInput(
            f"config.data.name: {config.name} has no examples in a split 'train'; it has {sizes}"
        )
    if sizes.get("test") or sizes.get("validation"):
        names = _split_names(sizes, config)
        return {
            name: (f"{config.name}/{name}", builder.as_data_source(split, decoders=decoders))
            for name, split in names.items()
        }
    source = builder.as_data_source("train", decoders=decoders)
    test = _test_examples(sizes["train"], config)
    return {
        name: (f"{config.name}/train, its part for {name}", Part(source, places))
        for name, places in cut(sizes["train"], test, config.validation_examples).items()
    }


def _split_names(sizes: Mapping[str, int], config: ImageDataConfig) -> dict[str, str]:
    """Which part of a set with a test split serves as which split, in tfds' notation."""
    test = "test" if sizes.get("test") else "validation"
    if config.test_fraction:
        raise BadInput(
            f"config.data.test_fraction={config.test_fraction} has no effect: {config.name} has a "
            f"split {test!r} to test on; set it to 0"
        )
    if test == "test" and sizes.get("validation"):
        return {"train": "train", "validation": "validation", "test": "test"}
    held_out = config.validation_examples
    if not 0 < held_out < sizes["train"]:
        raise BadInput(
            f"config.data.validation_examples={held_out}: {config.name} has no validation split "
            f"beside the test split, so between 1 and {sizes['train'] - 1} of its "
            f"{sizes['train']} training examples are held out"
        )
    return {"train": f"train[:-{held_out}]", "validation": f"train[-{held_out}:]", "test": test}


def _test_examples(examples: int, config: ImageDataConfig) -> int:
    """How many examples of a set with a training split alone are its test split."""
    alone = f"{config.name} has a split 'train' of {examples} examples and none to test on"
    if not config.test_fraction:
        raise BadInput(
            f"config.data.test_fraction=0: {alone}: give the fraction of them to test on, say 0.1, "
            "and config.data.validation_examples, the number of them to validate on"
        )
    test, validation = round(config.test_fraction * examples), config.validation_examples
    if test < 1 or validation < 1 or test + validation >= examples:
        raise BadInput(
            f"config.data.test_fraction={config.test_fraction} and config.data.validation_examples="
            f"{validation}: {alone}: {test} to test on, {validation} to validate on and "
            f"{examples - test - validation} to train on were asked for; each takes 1 or more"
        )
    return test


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
            image, _ = Encoded(record["image"]).decode(shape[-1])
        except Exception as error:  # decoders raise whatever bytes make of them
            return error
        if image.size != (shape[1], shape[0]):
            width, height = image.size
            return ValueError(
                f"{height} x {width} pixels, and the set's are {shape[0]} x {shape[1]}"
            )
        return np.asarray(image).reshape(shape)

    starts = range(0, len(source), _CHUNK)
    bar = Console(stderr=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in track(
            starts, f"decoding {split}", console=bar, transient=True, disable=not bar.is_terminal
        ):
            records = read_records(source, range(start, min(start + _CHUNK, len(source))))
            for i, image in enumerate(pool.map(decode, records)):
                readable = not isinstance(image, Exception)
                label = int(records[i]["label"]) if readable else -1
                yield record_number(source, start + i), image, label
