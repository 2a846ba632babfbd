"""Image sets prepared by tensorflow-datasets, read without TensorFlow."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from rich.console import Console

from train.config.data import ImageDataConfig
from train.config.tables import IMAGE_SETS
from train.data import tfds_sets
from train.data.cuts import Part, cut, record_number, record_place
from train.data.images import checks
from train.data.images.arrays import Images, channel_moments
from train.data.images.pixels import Encoded
from train.data.images.records import Records, published_moments, read_records
from train.data.progress import chunks
from train.data.split import Split
from train.errors import BadInput

_CHUNK = 1024  # records read and decoded at a time


def load(config: ImageDataConfig, image_size: tuple[int, int], seed: int = 0) -> dict[str, Split]:
    """Returns the splits 'train', 'validation' and 'test' of a prepared set.

    A set whose images have one size is decoded once into memory; the records of any other set are
    decoded as they are read, and cropped to image_size. The test split is the set's 'test', or its
    'validation' where it has no labelled test split (ImageNet); the validation split is its
    'validation', or the last `config.validation_examples` examples of 'train'. A set with a split
    'train' alone is cut by a fixed seed: `config.test_fraction` of the examples are the test split,
    `config.validation_examples` of the others the validation split.

    Args:
      config: the set, how its splits are made, and augment.crop_min_area for the training crops.
      image_size: height and width in pixels of images of varying size.
      seed: of the crops made while reading.

    Raises:
      BadInput: a set that does not exist, is not one of labelled images, lacks examples, or holds a
        record that cannot be read (unless config.skip_corrupt).
    """
    builder = tfds_sets.find(config.name, config.data_dir, builtin=tuple(IMAGE_SETS))
    checks.check_features(builder)
    shape = builder.info.features["image"].shape
    names = tuple(builder.info.features["label"].names)
    sources = _sources(builder, config)

    if None in shape:
        return _as_records(sources, config, image_size, names, channels=shape[-1], seed=seed)
    return _in_memory(sources, config, shape, names)


def _as_records(
    sources: Mapping[str, tuple[str, Any]],
    config: ImageDataConfig,
    image_size: tuple[int, int],
    names: tuple[str, ...],
    *,
    channels: int,
    seed: int,
) -> dict[str, Split]:
    # The set's own moments would cost a pass over all of it.
    mean, std = published_moments(channels)

    return {
        name: Records(
            source,
            split=split,
            classes=len(names),
            class_names=names,
            image_size=image_size,
            crop_min_area=config.augment.crop_min_area if name == "train" else 0.0,
            seed=seed,
            skip_corrupt=config.skip_corrupt,
            channels=channels,
            mean=mean,
            std=std,
        )
        for name, (split, source) in sources.items()
    }


def _in_memory(
    sources: Mapping[str, tuple[str, Any]],
    config: ImageDataConfig,
    shape: tuple[int, ...],
    names: tuple[str, ...],
) -> dict[str, Split]:
    arrays = {
        name: _decode_all(source, shape, len(names), split, config.skip_corrupt)
        for name, (split, source) in sources.items()
    }

    # The moments are the training pixels', in every split: nothing of a test image is used.
    mean, std = channel_moments(arrays["train"][0], peak=255.0)
    return {
        name: Images(
            images,
            labels,
            classes=len(names),
            peak=255.0,
            mean=mean,
            std=std,
            class_names=names,
        )
        for name, (images, labels) in arrays.items()
    }


def _sources(builder: Any, config: ImageDataConfig) -> dict[str, tuple[str, Any]]:
    """Returns the name in messages and the records of each split."""
    sizes = tfds_sets.split_sizes(builder, config.name)

    # Images stay encoded: `pixels` decodes them, and a damaged one can be named or left out.
    decoders = {"image": tfds.decode.SkipDecoding()}

    if sizes.get("test") or sizes.get("validation"):
        names = _split_names(sizes, config)
        return {
            name: (f"{config.name}/{name}", builder.as_data_source(split, decoders=decoders))
            for name, split in names.items()
        }

    source = builder.as_data_source("train", decoders=decoders)
    test = round(config.test_fraction * sizes["train"])
    checks.check_parts(config, sizes["train"], test)
    return {
        name: (f"{config.name}/train, its part for {name}", Part(source, indices))
        for name, indices in cut(sizes["train"], test, config.validation_examples).items()
    }


def _split_names(sizes: Mapping[str, int], config: ImageDataConfig) -> dict[str, str]:
    """Returns which part of a set with a test split is which split, in tfds' notation."""
    test = "test" if sizes.get("test") else "validation"
    checks.check_no_test_fraction(config, test)
    if test == "test" and sizes.get("validation"):
        return {"train": "train", "validation": "validation", "test": "test"}

    held_out = config.validation_examples
    checks.check_validation(config, sizes["train"])
    return {"train": f"train[:-{held_out}]", "validation": f"train[-{held_out}:]", "test": test}


def _decode_all(
    source: Any, shape: tuple[int, ...], classes: int, split: str, skip_corrupt: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a whole split: images [N, *shape] uint8 and labels [N] int32."""
    # Made at full size and filled: a list of arrays to join would need twice the memory.
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    good = 0

    for index, image, label in _decoded(source, shape, split):
        record = f"{split}: record {record_number(source, index)}"
        if isinstance(image, Exception):
            if not skip_corrupt:
                where = record_place(source, index)
                raise checks.undecodable(record, image, "leave such records out", where) from image
            continue
        if not 0 <= label < classes:
            raise checks.bad_label(record, label, classes, record_place(source, index))

        images[good], labels[good] = image, label
        good += 1

    if good < len(source):
        left_out = len(source) - good
        Console(stderr=True).print(f"{split}: left out {left_out} of {len(source)} records")
    if not good:
        raise BadInput(f"{split} has no example that can be read: prepare the set again")

    return images[:good], labels[:good]


def _decoded(
    source: Any, shape: tuple[int, ...], split: str
) -> Iterator[tuple[int, np.ndarray | Exception, int]]:
    """Yields the index of each record, its image or the error in its place, and its label."""
    # Threads suffice: decoders release the interpreter's lock while they work.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for chunk in chunks(len(source), _CHUNK, f"decoding {split}"):
            records = read_records(source, chunk)
            images = pool.map(lambda record: _decode(record, shape), records)

            for index, record, image in zip(chunk, records, images, strict=True):
                label = -1 if isinstance(image, Exception) else int(record["label"])
                yield index, image, label


def _decode(record: Any, shape: tuple[int, ...]) -> np.ndarray | Exception:
    """Returns the image of a record, or the error in its place."""
    if isinstance(record, Exception):
        return record

    try:
        image, _ = Encoded(record["image"]).decode(shape[-1])
    # Decoders raise errors of any kind on damaged bytes.
    except Exception as error:
        return error

    if image.size != (shape[1], shape[0]):
        width, height = image.size
        return ValueError(f"{height} x {width} pixels, and the set's are {shape[0]} x {shape[1]}")
    return np.asarray(image).reshape(shape)
