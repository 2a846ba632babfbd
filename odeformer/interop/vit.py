"""ViT and DeiT as the library transformers stores them.

Sources: Dosovitskiy et al. 2021, arXiv 2010.11929; Touvron et al. 2021, arXiv 2012.12877.
"""

from typing import Any

from odeformer.interop import vision
from odeformer.interop.checks import Needs, plain_needs
from odeformer.interop.layout import Layout, Leaf, linear, norm, of_layers, same
from odeformer.interop.settings import WRITTEN, Raw, activation, labels, written_labels
from odeformer.models.vit import ViTConfig

DISTILLATION = {
    "ViTForImageClassification": "none",
    "DeiTForImageClassification": "token",
    "DeiTForImageClassificationWithTeacher": "mean",
}


def read(raw: Raw) -> dict[str, Any]:
    """Returns the fields of a ViTConfig that a config.json describes, and the layers."""
    size = raw.get("image_size", 224)
    return dict(
        image_size=tuple(size) if isinstance(size, list) else size,
        patch_size=raw.get("patch_size", 16),
        channels=raw.get("num_channels", 3),
        classes=labels(raw),
        width=raw.get("hidden_size", 768),
        heads=raw.get("num_attention_heads", 12),
        mlp=raw.get("intermediate_size", 3072),
        qkv_bias=raw.get("qkv_bias", True),
        activation=activation(raw, "hidden_act", "gelu"),
        norm_epsilon=raw.get("layer_norm_eps", 1e-12),
        distillation=DISTILLATION[raw["architectures"][0]],
        layers=raw.get("num_hidden_layers", 12),
    )


def needs(config: ViTConfig) -> Needs:
    """Returns what a model needs that is written as one of these."""
    return {**plain_needs(config, but=("qkv_bias",)), "model.pool": (config.pool, "token")}


def write(config: ViTConfig) -> Raw:
    """Returns the config.json of a model."""
    kinds = {distillation: name for name, distillation in DISTILLATION.items()}
    size = config.image_size
    return {
        "architectures": [kinds[config.distillation]],
        "model_type": _prefix(config),
        "image_size": list(size) if isinstance(size, tuple) else size,
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        **written_labels(config.classes),
        "hidden_size": config.width,
        "num_hidden_layers": config.depth.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp,
        "hidden_act": WRITTEN[config.activation],
        "layer_norm_eps": config.norm_epsilon,
        "qkv_bias": config.qkv_bias,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _prefix(config: ViTConfig) -> str:
    return "vit" if config.distillation == "none" else "deit"


def layout(config: ViTConfig) -> Layout:
    """Returns which tensors make up the model's parameters."""
    width, classes, model = config.width, config.classes, _prefix(config)
    embeddings, tokens = f"{model}.embeddings", vision.placed_tokens(config)

    leaves = {
        **vision.patches(config, f"{embeddings}.patch_embeddings.projection"),
        "class_token": same(f"{embeddings}.cls_token", 1, 1, width),
        "positions": same(f"{embeddings}.position_embeddings", 1, tokens, width),
        **of_layers(_layer(config, f"{model}.encoder.layer.{{}}")),
        **norm("norm", f"{model}.layernorm", width),
    }
    if config.distillation != "none":
        leaves["distillation_token"] = same(f"{embeddings}.distillation_token", 1, 1, width)

    if config.distillation != "mean":
        return leaves | linear("head", "classifier", width, classes)

    leaves |= linear("head", "cls_classifier", width, classes)
    return leaves | linear("distillation_head", "distillation_classifier", width, classes)


def _layer(config: ViTConfig, name: str) -> dict[str, Leaf]:
    width, mixing = config.width, f"{name}.attention"
    inputs = tuple(f"{mixing}.attention.{part}" for part in ("query", "key", "value"))

    return {
        **norm("attention_norm", f"{name}.layernorm_before", width),
        **vision.attention(config, inputs, f"{mixing}.output.dense"),
        **norm("mlp_norm", f"{name}.layernorm_after", width),
        **vision.mlp(config, f"{name}.intermediate.dense", f"{name}.output.dense"),
    }


def stored_as(name: str, config: ViTConfig) -> str | None:
    """The layout's name of a stored tensor; None for one that no head reads."""
    return None if ".pooler." in name else name
