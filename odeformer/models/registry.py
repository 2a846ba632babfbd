"""The models, by their configs."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from odeformer.errors import check_kind
from odeformer.models.lm import LM, LMConfig
from odeformer.models.text import TextClassifier, TextConfig
from odeformer.models.vit import ViT, ViTConfig

ModelConfig = ViTConfig | LMConfig | TextConfig


def make_model(config: ModelConfig) -> nn.Module:
    """Returns the model that a config describes.

    Args:
      config: a ViTConfig, LMConfig or TextConfig.

    Raises:
      ValueError: anything else.
    """
    check_kind("make_model", config, ViTConfig, LMConfig, TextConfig)
    if isinstance(config, ViTConfig):
        return ViT(config)
    return LM(config) if isinstance(config, LMConfig) else TextClassifier(config)


def example_inputs(config: ModelConfig) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Returns what the model of a config is called with, for one example of the largest size.

    Args:
      config: of the model.

    Returns:
      The shapes and dtypes of an image, or of a block of tokens; `jax.eval_shape(model.init, key,
      *example_inputs(config))` gives the parameters'.
    """
    check_kind("example_inputs", config, ViTConfig, LMConfig, TextConfig)
    if isinstance(config, ViTConfig):
        return (jax.ShapeDtypeStruct((1, *config.image_shape), jnp.float32),)
    return (jax.ShapeDtypeStruct((1, config.block_size), jnp.int32),)
