"""What the use of a trained model needs to be known of its data; a run's inputs.json."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from odeformer import TextConfig, ViTConfig
from train.config.data import LanguageDataConfig
from train.config.run import RunConfig


@dataclasses.dataclass(frozen=True)
class ImageInputs:
    """How an image becomes a model's input, and what its outputs are.

    Attributes:
      image_shape: height and width in pixels, and channels.
      is_cropped: whether images of any size are cropped and scaled; else they have this one.
      peak: the pixel value that stands for 1, of values from 0 to 255.
      mean: of the training pixels by channel, as fractions of the peak.
      std: standard deviation of the same.
      classes: names, in the order of the outputs.
      origin: fields of the set's `Origin`; None where it has none.
    """

    image_shape: tuple[int, ...]
    is_cropped: bool
    peak: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    origin: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class SentenceInputs:
    """How a text becomes a classifier's input, and what its outputs are; see tokenizer.json.

    Attributes:
      block_size: the most tokens of a text; the others are cut off.
      classes: names, in the order of the outputs.
      origin: fields of the set's `Origin`; None where it has none.
    """

    block_size: int
    classes: tuple[str, ...]
    origin: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class LanguageInputs:
    """How a text becomes a language model's input; see tokenizer.json.

    Attributes:
      block_size: the most tokens of a text and its continuation.
      begins: whether a text begins with the token that ends texts.
      origin: fields of the set's `TextOrigin`; None where it has none.
    """

    block_size: int
    begins: bool
    origin: Mapping[str, Any] | None = None


Inputs = ImageInputs | SentenceInputs | LanguageInputs
KINDS: Mapping[str, type] = {  # by config.task
    "images": ImageInputs,
    "sentences": SentenceInputs,
    "language": LanguageInputs,
}


def describe_inputs(config: RunConfig, data: Any) -> Inputs:
    """Returns what is to be known of a run's data.

    Args:
      data: any of the run's splits.
    """
    # Sets of somebody's own may have none.
    found = getattr(data, "origin", None)
    origin = None if found is None else dataclasses.asdict(found)
    if isinstance(config.data, LanguageDataConfig):
        return dataclasses.replace(language_inputs(config), origin=origin)

    # Sets without names have numbers, as tensorflow-datasets gives them.
    names = data.class_names or tuple(str(label) for label in range(data.classes))
    if isinstance(config.model, TextConfig):
        return SentenceInputs(config.model.block_size, names, origin)

    assert isinstance(config.model, ViTConfig)
    return ImageInputs(
        image_shape=tuple(data.image_shape),
        is_cropped=data.is_cropped,
        peak=data.peak,
        mean=tuple(data.mean),
        std=tuple(data.std),
        classes=names,
        origin=origin,
    )


def language_inputs(config: RunConfig) -> LanguageInputs:
    """Returns the inputs of a language model, which its config alone says but for their origin."""
    model: Any = config.model
    assert isinstance(config.data, LanguageDataConfig)
    return LanguageInputs(model.block_size, begins=config.data.packing == "documents")


def to_json(task: str, inputs: Inputs) -> str:
    """Returns the inputs as a run's inputs.json holds them."""
    values = dataclasses.asdict(inputs)

    # Checkpoints hold this text's digest, and runs on texts were begun before these had an origin.
    if values["origin"] is None and not isinstance(inputs, ImageInputs):
        del values["origin"]
    return json.dumps({"task": task, **values}, indent=2)


def from_json(text: str) -> Inputs:
    """Returns the inputs that `to_json` wrote.

    Raises:
      ValueError, TypeError, KeyError: it is not the text of one.
    """
    values = json.loads(text)
    kind = KINDS[values.pop("task")]
    lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return kind(**values | lists)
