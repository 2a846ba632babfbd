"""What a trained model's predictor refuses."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from train.data.inputs import KINDS, Inputs
from train.errors import BadInput, first_line


def no_inputs(path: epath.Path, name: str) -> BadInput:
    """Returns the error for a run that did not record its inputs."""
    return BadInput(
        f"{path} has no inputs.json, as it was begun by an earlier version of the trainer: the "
        f"names of the classes of {name!r}, and the pixels' mean and deviation if it holds images, "
        "are not known. Give its train command again: a finished run is not trained again, and "
        "the file is written from the data"
    )


def check_kind(path: epath.Path, task: str, inputs: Inputs) -> None:
    """Refuses inputs of another task than the run's."""
    if not isinstance(inputs, KINDS[task]):
        raise BadInput(
            f"{path}/inputs.json is not that of a run of task {task!r}: put it back from a copy"
        )


def check_batch_size(size: Any) -> None:
    """Refuses a batch size that is no whole number from 1 on."""
    if not isinstance(size, int) or size < 1:
        raise BadInput(f"batch_size is a whole number, 1 or more; {size!r} was given")


def check_texts(texts: Sequence[Any], name: str = "the input") -> None:
    """Refuses what is no text, and an empty one."""
    for text in texts:
        if not isinstance(text, str) or not text:
            raise BadInput(
                f"{name} is {text!r}: the model takes texts (str) of one character or more"
            )


@contextlib.contextmanager
def refused() -> Iterator[None]:
    """Reports as bad input the values that the library refuses."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise BadInput(str(error)) from error


@contextlib.contextmanager
def unreadable(name: str) -> Iterator[None]:
    """Reports as bad input a file or an image that cannot be decoded."""
    try:
        yield
    except BadInput:
        raise
    # Decoders raise errors of any kind on bytes that are no image.
    except Exception as error:
        raise BadInput(f"{name} cannot be read as an image: {first_line(error)}") from error


def no_image(raw: Any, name: str) -> BadInput:
    """Returns the error for what is neither a path nor an image."""
    return BadInput(
        f"{name} is of type {type(raw).__name__}: give the path of an image, one of Pillow's "
        "images, or a uint8 array [height, width, channels]"
    )


def check_array(array: np.ndarray, channels: int, name: str) -> None:
    """Refuses an array that is no image of uint8 with the model's channels."""
    if array.dtype != np.uint8:
        raise BadInput(
            f"{name} is an array of {array.dtype}: the model takes pixels of uint8, as the data "
            "set has them; it standardises them itself"
        )
    if array.ndim != 3 or array.shape[-1] != channels or not array.size:
        raise BadInput(
            f"{name} is an array of shape {list(array.shape)}: the model takes images [height, "
            f"width, {channels}], of {channels} channel{'s' * (channels > 1)}"
        )


def check_size(size: tuple[int, int], image_shape: tuple[int, ...], name: str) -> None:
    """Refuses an image of another size than the data set's, all of whose images have one size.

    Args:
      size: width and height of the image.
      image_shape: height, width and channels of the model's.
      name: of the image.
    """
    width, height = size
    if (height, width) != image_shape[:2]:
        raise BadInput(
            f"{name} has {height} x {width} pixels (height x width): the model was trained on "
            f"images of {image_shape[0]} x {image_shape[1]}, none of which was scaled; scale it "
            "first"
        )


def check_peak(pixels: np.ndarray, peak: float, name: str) -> None:
    """Refuses pixels above the value that stands for 1 in the data set."""
    if pixels.max() > peak:
        raise BadInput(
            f"{name} has pixels up to {pixels.max()}: those of the data set that the model was "
            f"trained on are 0 to {peak:g}; bring them into this range"
        )
