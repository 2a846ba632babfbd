"""Which model belongs to which config."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from odeformer.errors import check_kind
from odeformer.models.lm import LM, LMConfig
from odeformer.models.text import TextClassifier, TextConfig
from odeformer.models.tokens import TokenConfig
from odeformer.models.vit import ViT, ViTConfig

ModelConfig = ViTConfig | LMConfig | TextConfig


class Entry(NamedTuple):
    """What belongs to one class of configs.

    Attributes:
      model: makes the module from a config.
      example: returns the shape and dtype of its input, for one example of the largest size.
    """

    model: Callable[[Any], nn.Module]
    example: Callable[[Any], jax.ShapeDtypeStruct]


def _image(config: ViTConfig) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *config.image_shape), jnp.float32)


def _block(config: TokenConfig) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, config.block_size), jnp.int32)


MODELS: dict[type, Entry] = {
    ViTConfig: Entry(ViT, _image),
    LMConfig: Entry(LM, _block),
    TextConfig: Entry(TextClassifier, _block),
}


def make_model(config: ModelConfig) -> nn.Module:
    """Returns the model that a config describes.

    Raises:
      ValueError: anything but the config of a model.
    """
    return _find("make_model", config).model(config)


def example_inputs(config: ModelConfig) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Returns what the model of a config is called with, for one example of the largest size.

    Returns:
      The shapes and dtypes of an image, or of a block of tokens; `jax.eval_shape(model.init, key,
      *example_inputs(config))` gives the parameters'.

    Raises:
      ValueError: anything but the config of a model.
    """
    return (_find("example_inputs", config).example(config),)


def _find(caller: str, config: ModelConfig) -> Entry:
    check_kind(caller, config, *MODELS)

    # By isinstance and not by type: a subclass of a config belongs to the same model.
    return next(entry for kind, entry in MODELS.items() if isinstance(config, kind))
