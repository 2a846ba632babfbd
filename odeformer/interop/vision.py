"""What the layouts of vision transformers share, whatever they call it."""

import math

from odeformer.interop.layout import Leaf, linear, packed, same
from odeformer.models.vit import ViTConfig


def patches(config: ViTConfig, name: str) -> dict[str, Leaf]:
    """The embedding of patches, which they store as a convolution."""
    width, size, channels = config.width, config.patch_size, config.channels
    kernel = (width, channels, size, size)

    # Theirs is [D, C, P, P]; ours is a product with pixels in the order P, P, C.
    return {
        "patches/projection/kernel": Leaf(
            (f"{name}.weight",), kernel, kernel, (2, 3, 1, 0), (size * size * channels, width)
        ),
        "patches/projection/bias": same(f"{name}.bias", width),
    }


def placed_tokens(config: ViTConfig) -> int:
    """The tokens that have positions: patches, and those that heads may read."""
    return math.prod(config.grid) + config.placed_tokens


def attention(config: ViTConfig, inputs: tuple[str, ...], out: str) -> dict[str, Leaf]:
    """Attention, whose queries, keys and values are three dense layers, or one that joins them.

    Args:
      inputs: names of these layers.
      out: name of the layer of the output.
    """
    width, heads = config.width, config.heads
    size, rows = width // heads, 3 * width // len(inputs)
    weights = tuple(f"{name}.weight" for name in inputs)

    leaves = {
        "attention_layer/qkv/kernel": Leaf(
            weights, (rows, width), (3, heads, size, width), (3, 0, 1, 2), (width, 3, heads, size)
        ),
        "attention_layer/out/kernel": Leaf(
            (f"{out}.weight",),
            (width, width),
            (width, heads, size),
            (1, 2, 0),
            (heads, size, width),
        ),
        "attention_layer/out/bias": same(f"{out}.bias", width),
    }
    if not config.qkv_bias:
        return leaves

    biases, shape = tuple(f"{name}.bias" for name in inputs), (3, heads, size)
    return leaves | {"attention_layer/qkv/bias": Leaf(biases, (rows,), shape, (0, 1, 2), shape)}


def mlp(config: ViTConfig, inputs: str, out: str) -> dict[str, Leaf]:
    """The MLP; gated, its two input products are one dense layer, the gate first.

    Args:
      inputs: name of the layer of the input.
      out: name of the layer of the output.
    """
    width, hidden = config.width, config.mlp
    parts = ("mlp_layer/gate", "mlp_layer/up") if config.gated else ("mlp_layer/up",)
    return packed(parts, inputs, width, hidden) | linear("mlp_layer/down", out, hidden, width)


def scales(config: ViTConfig, attention: str, mlp: str) -> dict[str, Leaf]:
    """The factors of layer scale, where the model has them."""
    if config.layer_scale is None:
        return {}

    return {
        "attention_scale/gamma": same(attention, config.width),
        "mlp_scale/gamma": same(mlp, config.width),
    }
