"""Named sizes, as published."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from odeformer.errors import check_name
from odeformer.models.lm import LMConfig
from odeformer.models.text import TextConfig
from odeformer.models.vit import ViTConfig
from odeformer.transformer.checks import check_fields
from odeformer.transformer.config import DepthConfig, as_depth

Config = TypeVar("Config", ViTConfig, LMConfig, TextConfig)

_VIT: dict[str, dict[str, Any]] = {
    # Touvron et al., 'Training data-efficient image transformers', 2021, arXiv 2012.12877
    "deit_ti": dict(width=192, heads=3, mlp=768),
    "deit_s": dict(width=384, heads=6, mlp=1536),
    # Dosovitskiy et al., 'An Image is Worth 16x16 Words', 2021, arXiv 2010.11929
    "vit_b": dict(width=768, heads=12, mlp=3072),
    "vit_l": dict(width=1024, heads=16, mlp=4096, layers=24),
    # 8x8 handwritten digits on a CPU
    "digits": dict(
        width=64,
        heads=4,
        mlp=128,
        layers=4,
        image_size=8,
        patch_size=2,
        channels=1,
        classes=10,
        pool="mean",
    ),
}
_LM: dict[str, dict[str, Any]] = {
    # Karpathy, nanoGPT, 2022: the character model; here over bytes, with rotary positions
    "gpt_nano": dict(width=384, heads=6, mlp=1536, layers=6),
    # Radford et al., 'Language Models are Unsupervised Multitask Learners', 2019
    "gpt_small": dict(
        vocabulary=50257,
        block_size=1024,
        width=768,
        heads=12,
        mlp=3072,
        positions="learned",
        layers=12,
    ),
    # Brown et al., 'Language Models are Few-Shot Learners', 2020, arXiv 2005.14165: GPT-3 XL. Their
    # table has 24 heads of 128, which a width of 2048 does not hold.
    "gpt_1b": dict(vocabulary=32_768, block_size=1024, width=2048, heads=16, mlp=8192, layers=24),
}
_TEXT: dict[str, dict[str, Any]] = {
    # sentences, from scratch on a CPU
    "text_small": dict(vocabulary=16_000, block_size=64, width=128, heads=4, mlp=256, layers=4),
}
VIT_NAMES: tuple[str, ...] = tuple(_VIT)
LM_NAMES: tuple[str, ...] = tuple(_LM)
TEXT_NAMES: tuple[str, ...] = tuple(_TEXT)


def vit(
    name: str, *, depth: DepthConfig | Mapping[str, Any] | None = None, **changes: Any
) -> ViTConfig:
    """Returns the config of a named vision transformer.

    Args:
      name: 'deit_ti', 'deit_s', 'vit_b', 'vit_l' (224 pixels, patch 16, 1000 classes, a class
        token; 12 layers, vit_l 24) or 'digits' (8 pixels, patch 2, 10 classes, 4 layers).
      depth: fields of DepthConfig to set, or a whole one, e.g. {'solver': 'rk4', 'share': 12}.
      **changes: fields of ViTConfig to set, e.g. image_size=32, patch_size=4, classes=10.

    Returns:
      A ViTConfig, for `ViT(config)`.

    Raises:
      ValueError: a name or a field that does not exist, or a value its config refuses.

    Examples:
      >>> config = vit("deit_ti", image_size=32, patch_size=4, classes=10, depth={"share": 12})
      >>> config.width, config.depth.groups
      (192, 1)
    """
    common = dict(image_size=224, patch_size=16, classes=1000, layers=12)
    sizes = common | _find("vision transformer", name, _VIT)
    return _make(ViTConfig, sizes, depth, changes)


def lm(
    name: str, *, depth: DepthConfig | Mapping[str, Any] | None = None, **changes: Any
) -> LMConfig:
    """Returns the config of a named language model.

    Args:
      name: 'gpt_nano' (6 layers of width 384 over bytes, blocks of 256), 'gpt_small' (GPT-2's
        124 million parameters: 12 layers of width 768, 50,257 tokens, blocks of 1,024, learned
        positions) or 'gpt_1b' (1.28 billion: 24 layers of width 2048, 32,768 tokens, blocks of
        1,024, rotary positions).
      depth: fields of DepthConfig to set, or a whole one, e.g. {'solver': 'rk4', 'share': 6}.
      **changes: fields of LMConfig to set, e.g. vocabulary=65, dropout=0.2.

    Returns:
      An LMConfig, for `LM(config)`.

    Raises:
      ValueError: a name or a field that does not exist, or a value its config refuses.

    Examples:
      >>> lm("gpt_small").depth.layers
      12
    """
    return _make(LMConfig, _find("language model", name, _LM), depth, changes)


def text(
    name: str, *, depth: DepthConfig | Mapping[str, Any] | None = None, **changes: Any
) -> TextConfig:
    """Returns the config of a named text classifier.

    Args:
      name: 'text_small' (4 layers of width 128, 16,000 tokens, texts of up to 64).
      depth: fields of DepthConfig to set, or a whole one, e.g. {'solver': 'tsit5', 'rtol': 1e-3}.
      **changes: fields of TextConfig to set, e.g. classes=5.

    Returns:
      A TextConfig, for `TextClassifier(config)`.

    Raises:
      ValueError: a name or a field that does not exist, or a value its config refuses.

    Examples:
      >>> text("text_small", classes=5).classes
      5
    """
    return _make(TextConfig, _find("text classifier", name, _TEXT), depth, changes)


def _find(kind: str, name: str, table: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    check_name(kind, name, table)
    return table[name]


def _make(
    kind: type[Config],
    sizes: dict[str, Any],
    depth: DepthConfig | Mapping[str, Any] | None,
    changes: dict[str, Any],
) -> Config:
    """Builds a config from named sizes and the changes to them."""
    names = [field.name for field in dataclasses.fields(kind) if field.name != "depth"]
    check_fields(kind.__name__, changes, names)

    # The name's layers hold, unless the depth sets its own or is a whole DepthConfig.
    sizes = dict(sizes)
    layers = sizes.pop("layers")
    if depth is None or isinstance(depth, Mapping):
        depth = {"layers": layers, **(depth or {})}

    return kind(**(sizes | changes), depth=as_depth(depth))
