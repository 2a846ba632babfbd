"""Vision transformers as the library timm stores them: ViT, DeiT, DeiT III and DINOv2; read only.

Its config.json names the model, and the sizes follow from the name.

Sources: Wightman, 'PyTorch Image Models', 2019; Touvron et al. 2022, arXiv 2204.07118 (DeiT III).
"""

import re
from typing import Any

from odeformer.interop import vision
from odeformer.interop.checks import TIMM
from odeformer.interop.layout import Layout, Leaf, linear, norm, of_layers, same
from odeformer.interop.settings import Raw
from odeformer.interop.timm_checks import check_arguments, unknown_model
from odeformer.models.vit import ViTConfig

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(embed_dim=192, depth=12, num_heads=3),
    "small": dict(embed_dim=384, depth=12, num_heads=6),
    "medium": dict(embed_dim=512, depth=12, num_heads=8),
    "base": dict(embed_dim=768, depth=12, num_heads=12),
    "large": dict(embed_dim=1024, depth=24, num_heads=16),
    "huge": dict(embed_dim=1280, depth=32, num_heads=16),
    "giant": dict(embed_dim=1536, depth=40, num_heads=24),
}

# Of SwiGLU, of whose hidden size one half is the gate.
_GIANT: dict[str, Any] = dict(mlp_ratio=2.66667 * 2, act_layer="silu")

# What a name says in addition to the size, by the form of the name.
_FORMS: dict[str, dict[str, Any]] = {
    r"vit_(tiny|small|base|large|huge)_patch(\d+)_\d+": {},
    r"deit_(tiny|small|base)_patch(\d+)_\d+": {},
    r"deit_(tiny|small|base)_distilled_patch(\d+)_\d+": dict(distilled=True),
    r"deit3_(small|medium|base|large|huge)_patch(\d+)_\d+": dict(
        no_embed_class=True, init_values=1e-6
    ),
    r"vit_(small|base|large)_patch(\d+)_dinov2": dict(init_values=1e-5),
    r"vit_(small|base|large)_patch(\d+)_reg4_dinov2": dict(
        no_embed_class=True, init_values=1e-5, reg_tokens=4
    ),
    r"vit_(giant)_patch(\d+)_dinov2": _GIANT | dict(init_values=1e-5),
    r"vit_(giant)_patch(\d+)_reg4_dinov2": _GIANT
    | dict(no_embed_class=True, init_values=1e-5, reg_tokens=4),
}


def is_named(raw: Raw) -> bool:
    """Returns whether a config.json is one of timm."""
    return "architecture" in raw and "architectures" not in raw


def _arguments(raw: Raw) -> dict[str, Any]:
    """What timm makes the model with."""
    name = raw["architecture"]
    form, match = next(
        ((form, match) for form in _FORMS if (match := re.fullmatch(form, str(name)))),
        (None, None),
    )
    if form is None or match is None:
        raise unknown_model(name, TIMM)

    # What was changed when the model was made stands in the config, and so does its input.
    made = raw.get("model_args") or {}
    channels, *sides = (raw.get("pretrained_cfg") or {}).get("input_size") or (3, 224, 224)
    arguments = {
        **_SIZES[match[1]],
        "patch_size": int(match[2]),
        "in_chans": channels,
        "img_size": sides,
        **_FORMS[form],
        "num_classes": raw.get("num_classes", 1000),
        "global_pool": raw.get("global_pool", "token"),
        **made,
    }
    check_arguments(arguments)
    return arguments


def read(raw: Raw) -> dict[str, Any]:
    """Returns the fields of a ViTConfig that a config.json describes, and the layers.

    Raises:
      ValueError: a model that is not read, or one that was made with something that ours lack.
    """
    arguments = _arguments(raw)
    size, width = arguments["img_size"], arguments["embed_dim"]
    height, across = size if isinstance(size, list | tuple) else (size, size)
    hidden, gated = int(width * arguments.get("mlp_ratio", 4.0)), "giant" in raw["architecture"]
    return dict(
        image_size=height if height == across else (height, across),
        patch_size=arguments["patch_size"],
        channels=arguments["in_chans"],
        classes=arguments["num_classes"],
        width=width,
        heads=arguments["num_heads"],
        mlp=hidden // 2 if gated else hidden,
        gated=gated,
        # Their names are ours.
        activation=arguments.get("act_layer") or "gelu",
        qkv_bias=arguments.get("qkv_bias", True),
        norm_epsilon=1e-6,
        layer_scale=arguments.get("init_values") or None,
        registers=arguments.get("reg_tokens", 0),
        distillation=_distillation(arguments),
        layers=arguments["depth"],
    )


def _distillation(arguments: Raw) -> str:
    """How the token of distillation is read; without classes there is no head to read it."""
    if not arguments.get("distilled"):
        return "none"

    return "mean" if arguments["num_classes"] else "token"


def layout(config: ViTConfig, raw: Raw) -> Layout:
    """Returns which tensors make up the parameters of the model that a config.json describes."""
    width, classes = config.width, config.classes
    leaves = {
        **vision.patches(config, "patch_embed.proj"),
        "class_token": same("cls_token", 1, 1, width),
        "positions": _positions(config, _arguments(raw).get("no_embed_class", False)),
        **of_layers(_layer(config, "blocks.{}")),
        **norm("norm", "norm", width),
    }
    if config.registers:
        leaves["registers"] = same("reg_token", 1, config.registers, width)
    if config.distillation != "none":
        leaves["distillation_token"] = same("dist_token", 1, 1, width)
    if not classes:
        return leaves

    leaves |= linear("head", "head", width, classes)
    if config.distillation == "none":
        return leaves

    return leaves | linear("distillation_head", "head_dist", width, classes)


def _positions(config: ViTConfig, of_patches: bool) -> Leaf:
    """The positions; where the patches alone have any, those of other tokens are 0."""
    tokens, width = vision.placed_tokens(config), config.width
    if not of_patches:
        return same("pos_embed", 1, tokens, width)

    first = config.placed_tokens
    return same("pos_embed", 1, tokens - first, width)._replace(
        shape=(1, tokens, width), padding=((0, 0), (first, 0), (0, 0))
    )


def _layer(config: ViTConfig, name: str) -> dict[str, Leaf]:
    width = config.width
    return {
        **norm("attention_norm", f"{name}.norm1", width),
        **vision.attention(config, (f"{name}.attn.qkv",), f"{name}.attn.proj"),
        **norm("mlp_norm", f"{name}.norm2", width),
        **vision.mlp(config, f"{name}.mlp.fc1", f"{name}.mlp.fc2"),
        **vision.scales(config, f"{name}.ls1.gamma", f"{name}.ls2.gamma"),
    }
