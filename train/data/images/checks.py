"""What a set of labelled images must be, and which keys of its config have an effect."""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from train.config.data import ImageDataConfig
from train.data.checks import check_splits
from train.data.images.digits import FOLDS
from train.data.images.pixels import MODES
from train.errors import BadInput


def check_digits_keys(config: ImageDataConfig) -> None:
    """Refuses a fold that does not exist, files, and sizes that 'digits' cannot have."""
    check_no_files(config)
    if config.fold is not None and not 0 <= config.fold < FOLDS:
        raise BadInput(f"config.data.fold is 0 to {FOLDS - 1}; {config.fold} was given")
    if config.validation_examples and config.fold is None:
        raise BadInput(
            f"config.data.validation_examples={config.validation_examples} has no effect: 'digits' "
            "has a validation split of its own; set it to 0, or give config.data.fold"
        )
    if config.validation_examples and not 10 <= config.validation_examples <= 1000:
        raise BadInput(
            f"config.data.validation_examples={config.validation_examples}: of the 1,797 digits 10 "
            "to 1,000 are held out of every fold; 0 for 180 of each fold's training images"
        )
    if config.test_fraction:
        raise BadInput(
            f"config.data.test_fraction={config.test_fraction} has no effect: 'digits' has a "
            "test split of its own; set it to 0"
        )


def check_prepared_keys(config: ImageDataConfig) -> None:
    """Refuses a fold, which only 'digits' has, and files."""
    check_no_files(config)
    check_no_fold(config)


def check_no_fold(config: ImageDataConfig) -> None:
    """Refuses a fold, which only 'digits' has."""
    if config.fold is not None:
        raise BadInput(
            f"config.data.fold={config.fold}: {config.name} has a test split of its own; folds are "
            "for 'digits', leave it out"
        )


def check_folder_keys(config: ImageDataConfig) -> None:
    """Refuses keys that have no effect on a folder of images."""
    check_no_fold(config)
    no_effect = {"data_dir": config.data_dir is not None, "skip_corrupt": config.skip_corrupt}
    for key, is_set in no_effect.items():
        if is_set:
            raise BadInput(
                f"config.data.{key}={getattr(config, key)!r} has no effect with "
                "config.data.name='folder': leave it out (config.data.files names the folder, and "
                "files that cannot be read are always left out)"
            )


def check_no_files(config: ImageDataConfig) -> None:
    """Refuses files, which only 'folder' has."""
    if config.files is not None:
        raise BadInput(
            f"config.data.files={config.files!r} has no effect with config.data.name="
            f"{config.name!r}: set the name to 'folder'"
        )


def check_features(builder: Any) -> None:
    """Refuses a set that is not one of labelled images."""
    features: dict[str, Any] = dict(builder.info.features)
    image, label = features.get("image"), features.get("label")
    is_labelled = isinstance(label, tfds.features.ClassLabel)
    if not isinstance(image, tfds.features.Image) or not is_labelled:
        raise BadInput(
            f"config.data.name: {builder.name} has the features {', '.join(features)}: a set with "
            "'image' and a class 'label' is needed"
        )
    check_image(builder.name, image)


def check_image(name: str, image: Any) -> None:
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


def check_no_test_fraction(config: ImageDataConfig, test_split: str) -> None:
    """Refuses a test fraction of a set that has a split to test on."""
    if config.test_fraction:
        raise BadInput(
            f"config.data.test_fraction={config.test_fraction} has no effect: {config.name} has a "
            f"split {test_split!r} to test on; set it to 0"
        )


def check_validation(config: ImageDataConfig, examples: int) -> None:
    """Refuses a validation part that takes none or all of the training examples."""
    if not 0 < config.validation_examples < examples:
        raise BadInput(
            f"config.data.validation_examples={config.validation_examples}: {config.name} has no "
            f"validation split, so between 1 and {examples - 1} of its {examples} training "
            "examples are held out"
        )


def check_parts(config: ImageDataConfig, examples: int, test: int) -> None:
    """Refuses a cut of a training split that leaves one of the three parts empty."""
    alone = f"{config.name} has a split 'train' of {examples} examples and none to test on"
    if not config.test_fraction:
        raise BadInput(
            f"config.data.test_fraction=0: {alone}: give the fraction of them to test "
            "on, say 0.1, and config.data.validation_examples, the number of them to validate on"
        )

    validation = config.validation_examples
    if test < 1 or validation < 1 or test + validation >= examples:
        raise BadInput(
            f"config.data.test_fraction={config.test_fraction} and config.data.validation_examples="
            f"{validation}: {alone}: {test} to test on, {validation} to validate on and "
            f"{examples - test - validation} to train on were asked for; each needs 1 or more"
        )


def check_channels(found: int, channels: int) -> None:
    """Refuses a preparation's mean and deviation of another number of channels than the data's."""
    if found not in (1, channels):
        raise BadInput(
            f"the pretrained model's images have {found} channels by their mean and "
            f"deviation, and the data set's {channels}: take the preprocessor_config.json of the "
            "same model"
        )


def undecodable(record: str, error: Exception, otherwise: str, place: str) -> BadInput:
    """Returns the error for a record that cannot be decoded.

    Args:
      record: names it.
      error: what the decoder raised.
      otherwise: what config.data.skip_corrupt does instead, in words.
      place: of `record_place`.
    """
    return BadInput(
        f"{record} cannot be decoded ({error}): prepare the set again, or set "
        f"config.data.skip_corrupt to {otherwise} instead{place}"
    )


def bad_label(record: str, label: int, classes: int, place: str) -> BadInput:
    """Returns the error for a record, named by name and place, whose label is not a class."""
    return BadInput(
        f"{record} has label {label}; the labels are 0 to {classes - 1}: prepare the set again"
        f"{place}"
    )


def check_image_splits(name: str, splits: Any) -> None:
    """Refuses what a registered set of images returns where it is none."""
    needed = ("gather", "classes", "mean", "std", "image_shape", "to_unit", "__len__")
    check_splits(
        name,
        splits,
        "an Images, or an object with " + ", ".join(needed),
        lambda split: all(hasattr(split, attribute) for attribute in needed),
    )
