"""What belongs to which config: its model, its inputs, its sizes."""

import math
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


class ExampleSizes(NamedTuple):
    """Sizes of one example on its way through a model: an image, or a full block of tokens.

    Attributes:
      tokens: N, those of the state, those before the patches included.
      patches: how many inputs a matrix product embeds; 0 where embeddings are looked up.
      patch_inputs: size of each of these inputs.
      predictions: how many of the state's vectors the head reads.
      outputs: size of a prediction, the logits' last axis: classes, or the vocabulary.
    """

    tokens: int
    patches: int
    patch_inputs: int
    predictions: int
    outputs: int


class Entry(NamedTuple):
    """What belongs to one class of configs.

    Attributes:
      model: makes the module from a config.
      example: returns the shape and dtype of its input, for one example of the largest size.
      sizes: returns the sizes of that example.
    """

    model: Callable[[Any], nn.Module]
    example: Callable[[Any], jax.ShapeDtypeStruct]
    sizes: Callable[[Any], ExampleSizes]


def _image(config: ViTConfig) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *config.image_shape), jnp.float32)


def _block(config: TokenConfig) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, config.block_size), jnp.int32)


def _vit_sizes(config: ViTConfig) -> ExampleSizes:
    patches = math.prod(config.grid)
    read = (2 if config.pool == "token_mean" else 1) + (config.distillation == "mean")
    return ExampleSizes(
        tokens=patches + config.extra_tokens,
        patches=patches,
        patch_inputs=config.patch_size**2 * config.channels,
        predictions=read if config.classes else 0,
        outputs=config.classes,
    )


def _lm_sizes(config: LMConfig) -> ExampleSizes:
    # Each token's state predicts the next token.
    size = config.block_size
    return ExampleSizes(size, 0, 0, predictions=size, outputs=config.vocabulary)


def _text_sizes(config: TextConfig) -> ExampleSizes:
    return ExampleSizes(config.block_size, 0, 0, predictions=1, outputs=config.classes)


MODELS: dict[type, Entry] = {
    ViTConfig: Entry(ViT, _image, _vit_sizes),
    LMConfig: Entry(LM, _block, _lm_sizes),
    TextConfig: Entry(TextClassifier, _block, _text_sizes),
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


def example_sizes(config: ModelConfig) -> ExampleSizes:
    """Returns the sizes of one example of the largest size on its way through a model.

    Raises:
      ValueError: anything but the config of a model.
    """
    return _find("example_sizes", config).sizes(config)


def _find(caller: str, config: ModelConfig) -> Entry:
    check_kind(caller, config, *MODELS)

    # By isinstance and not by type: a subclass of a config belongs to the same model.
    return next(entry for kind, entry in MODELS.items() if isinstance(config, kind))
