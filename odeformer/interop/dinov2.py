"""DINOv2, with and without registers, as the library transformers stores it.

Sources: Oquab et al. 2023, arXiv 2304.07193; Darcet et al. 2023, arXiv 2309.16588.
"""

import itertools
from typing import Any

from odeformer.interop import vision
from odeformer.interop.checks import Needs, check_square, plain_needs
from odeformer.interop.layout import Layout, Leaf, linear, norm, of_layers, same
from odeformer.interop.settings import WRITTEN, Raw, activation, labels, written_labels
from odeformer.models.vit import ViTConfig

PLAIN, WITH_REGISTERS = "dinov2", "dinov2_with_registers"

# By architecture: its model_type, and whether it has a head.
ARCHITECTURES = {
    "Dinov2Model": (PLAIN, False),
    "Dinov2ForImageClassification": (PLAIN, True),
    "Dinov2WithRegistersModel": (WITH_REGISTERS, False),
    "Dinov2WithRegistersForImageClassification": (WITH_REGISTERS, True),
}


def read(raw: Raw) -> dict[str, Any]:
    """Returns the fields of a ViTConfig that a config.json describes, and the layers."""
    kind, has_head = ARCHITECTURES[raw["architectures"][0]]
    size, width = raw.get("image_size", 224), raw.get("hidden_size", 768)
    check_square(size)

    # A gated MLP is always SwiGLU there, whatever activation the config names.
    gated = raw.get("use_swiglu_ffn", False)
    act = "silu" if gated else activation(raw, "hidden_act", "gelu")
    return dict(
        image_size=size,
        patch_size=raw.get("patch_size", 14 if kind == PLAIN else 16),
        channels=raw.get("num_channels", 3),
        classes=labels(raw) if has_head else 0,
        width=width,
        heads=raw.get("num_attention_heads", 12),
        mlp=_hidden(width, raw.get("mlp_ratio", 4), gated),
        gated=gated,
        activation=act,
        qkv_bias=raw.get("qkv_bias", True),
        norm_epsilon=raw.get("layer_norm_eps", 1e-6),
        layer_scale=float(raw.get("layerscale_value", 1.0)),
        registers=0 if kind == PLAIN else raw.get("num_register_tokens", 4),
        # What their head reads, and one that is added to a model without it may.
        pool="token_mean",
        layers=raw.get("num_hidden_layers", 12),
    )


def _hidden(width: int, ratio: float, gated: bool) -> int:
    """The MLP's hidden size: two thirds of it where it is gated, up to a multiple of 8."""
    hidden = int(width * ratio)
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden


def _ratio(config: ViTConfig) -> int:
    """The largest ratio whose hidden size is at most ours; 1 if there is none."""
    width, mlp, gated = config.width, config.mlp, config.gated
    fits = itertools.takewhile(lambda n: _hidden(width, n, gated) <= mlp, itertools.count(1))
    return max(fits, default=1)


def is_meant(config: ViTConfig) -> bool:
    """Returns whether a model has something that DINOv2 has, and ViT and DeiT do not."""
    scaled = config.layer_scale is not None
    return scaled or config.registers > 0 or config.pool == "token_mean" or not config.classes


def needs(config: ViTConfig) -> Needs:
    """Returns what a model needs that is written as one of these."""
    scale, height, width = config.layer_scale, *config.image_shape[:2]
    return {
        **plain_needs(config, but=("gated", "qkv_bias")),
        "model.layer_scale": (scale, scale or "a number"),
        "model.pool": (config.pool, "token_mean"),
        "model.distillation": (config.distillation, "none"),
        "model.image_size": (config.image_size, height if height == width else "one side"),
        "model.mlp": (config.mlp, _hidden(config.width, _ratio(config), config.gated)),
        "model.activation": (config.activation, "silu" if config.gated else config.activation),
    }


def write(config: ViTConfig) -> Raw:
    """Returns the config.json of a model."""
    kind = _kind(config)
    names = {found: name for name, found in ARCHITECTURES.items()}
    raw = {
        "architectures": [names[kind, config.classes > 0]],
        "model_type": kind,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth.layers,
        "num_attention_heads": config.heads,
        "mlp_ratio": _ratio(config),
        "hidden_act": WRITTEN[config.activation],
        "layer_norm_eps": config.norm_epsilon,
        "layerscale_value": config.layer_scale,
        "qkv_bias": config.qkv_bias,
        "use_swiglu_ffn": config.gated,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
    }
    if config.classes:
        raw |= written_labels(config.classes)

    # With registers there is no switch: transformers makes the token of masked patches again.
    return raw | (
        {"use_mask_token": False} if kind == PLAIN else {"num_register_tokens": config.registers}
    )


def _kind(config: ViTConfig) -> str:
    return WITH_REGISTERS if config.registers else PLAIN


def layout(config: ViTConfig) -> Layout:
    """Returns which tensors make up the model's parameters."""
    width, model = config.width, f"{_kind(config)}." if config.classes else ""
    embeddings = f"{model}embeddings"

    leaves = {
        **vision.patches(config, f"{embeddings}.patch_embeddings.projection"),
        "class_token": same(f"{embeddings}.cls_token", 1, 1, width),
        "positions": same(
            f"{embeddings}.position_embeddings", 1, vision.placed_tokens(config), width
        ),
        **of_layers(_layer(config, f"{model}encoder.layer.{{}}")),
        **norm("norm", f"{model}layernorm", width),
    }
    if config.registers:
        tokens = same(f"{embeddings}.register_tokens", 1, config.registers, width)
        leaves["registers"] = tokens

    return leaves | (
        linear("head", "classifier", 2 * width, config.classes) if config.classes else {}
    )


def _layer(config: ViTConfig, name: str) -> dict[str, Leaf]:
    width, mixing = config.width, f"{name}.attention"
    inputs = tuple(f"{mixing}.attention.{part}" for part in ("query", "key", "value"))
    mlp = ("weights_in", "weights_out") if config.gated else ("fc1", "fc2")

    return {
        **norm("attention_norm", f"{name}.norm1", width),
        **vision.attention(config, inputs, f"{mixing}.output.dense"),
        **norm("mlp_norm", f"{name}.norm2", width),
        **vision.mlp(config, *(f"{name}.mlp.{part}" for part in mlp)),
        **vision.scales(config, f"{name}.layer_scale1.lambda1", f"{name}.layer_scale2.lambda1"),
    }


def stored_as(name: str, config: ViTConfig) -> str | None:
    """The layout's name of a stored tensor; None for the token of masked patches."""
    return None if name.endswith("embeddings.mask_token") else name
