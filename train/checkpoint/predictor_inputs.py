"""What a trained model takes: its inputs as a run recorded them, and a user's images made such."""

import os
import pathlib
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from train.checkpoint.predictor_checks import (
    check_array,
    check_kind,
    check_peak,
    check_size,
    no_image,
    no_inputs,
    unreadable,
)
from train.checkpoint.workdir import read_inputs
from train.config.run import RunConfig, base_task
from train.data.images import digits
from train.data.images.crops import evaluation_crop
from train.data.images.pixels import Decodable, Decoded, Encoded
from train.data.inputs import ImageInputs, Inputs, describe_inputs, language_inputs
from train.files import expand


def inputs_of(path: epath.Path, config: RunConfig) -> Inputs:
    """Returns what a run's inputs.json holds, or what it would hold in a run that has none.

    Raises:
      BadInput: it cannot be read, is that of another task, or is missing where the config alone
        does not say what the inputs are.
    """
    inputs = read_inputs(path) or _derived(path, config)
    check_kind(path, base_task(config.task), inputs)
    return inputs


def _derived(path: epath.Path, config: RunConfig) -> Inputs:
    """The inputs of a run that did not record them, where the config alone says what they are."""
    if base_task(config.task) == "language":
        return language_inputs(config)
    if base_task(config.task) == "images" and config.data.name == "digits":
        data: Any = config.data
        return describe_inputs(config, digits.load(data.fold, data.validation_examples)["train"])

    raise no_inputs(path, config.data.name)


def is_one_image(raw: Any) -> bool:
    """Returns whether this is one image, and not several: a path, one of Pillow's, an array."""
    if isinstance(raw, str | os.PathLike | Image.Image):
        return True
    return getattr(raw, "ndim", 0) in (2, 3)


def read_image(raw: Any, inputs: ImageInputs, name: str) -> np.ndarray:
    """Returns an image as evaluation reads it: uint8 [height, width, channels].

    Args:
      raw: a path, one of Pillow's images, or a uint8 array [H, W, C], or [H, W] of one channel.
      name: of an image that is not a file, for messages.

    Raises:
      BadInput: it is no image, cannot be read, or has a size, channels or values that the model
        does not take.
    """
    if isinstance(raw, str | os.PathLike):
        name = os.fspath(raw)
        pixels = _of_file(name, inputs)
    elif isinstance(raw, Image.Image):
        with unreadable(name):
            pixels = _fit(Decoded(raw), inputs, name)
    elif hasattr(raw, "__array__"):
        pixels = _of_array(np.asarray(raw), inputs, name)
    else:
        raise no_image(raw, name)

    check_peak(pixels, inputs.peak, name)
    return pixels


def _of_file(path: str, inputs: ImageInputs) -> np.ndarray:
    with unreadable(path):
        return _fit(Encoded(pathlib.Path(expand(path)).read_bytes()), inputs, path)


def _of_array(array: np.ndarray, inputs: ImageInputs, name: str) -> np.ndarray:
    array = array[..., None] if array.ndim == 2 else array
    check_array(array, inputs.image_shape[-1], name)
    if not inputs.is_cropped:
        check_size((array.shape[1], array.shape[0]), inputs.image_shape, name)
        return array

    # Pillow gives an image of one channel no axis for it.
    return _fit(
        Decoded(Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)), inputs, name
    )


def _fit(image: Decodable, inputs: ImageInputs, name: str) -> np.ndarray:
    """Crops and scales an image as evaluation does, or refuses another size."""
    if inputs.is_cropped:
        return evaluation_crop(image, inputs.image_shape)

    check_size(image.size, inputs.image_shape, name)
    pixels, _ = image.decode(inputs.image_shape[-1])
    return np.asarray(pixels).reshape(inputs.image_shape)
