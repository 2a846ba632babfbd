"""Named sizes, as published."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from odeformer.depth import DepthConfig
from odeformer.errors import unknown
from odeformer.vit import ViTConfig

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
VIT_NAMES: tuple[str, ...] = tuple(_VIT)


def vit(name: str, *, depth: Mapping[str, Any] | None = None, **changes: Any) -> ViTConfig:
    """Returns the config of a named vision transformer.

    Args:
      name: 'deit_ti', 'deit_s', 'vit_b', 'vit_l' (224 pixels, patch 16, 1000 classes, a class
        token; 12 layers, vit_l 24) or 'digits' (8 pixels, patch 2, 10 classes, 4 layers).
      depth: fields of DepthConfig to set, e.g. {'solver': 'rk4', 'share': 12}.
      **changes: fields of ViTConfig to set, e.g. image_size=32, patch_size=4, classes=10.

    Returns:
      A ViTConfig, for `ViT(config)`.

    Raises:
      ValueError: a name or a field that does not exist, or a value its config refuses.

    Example:
      >>> config = vit("deit_ti", image_size=32, patch_size=4, classes=10, depth={"share": 12})
      >>> config.width, config.depth.groups
      (192, 1)
    """
    if name not in _VIT:
        raise unknown("vision transformer", name, VIT_NAMES)
    sizes: dict[str, Any] = (
        dict(image_size=224, patch_size=16, classes=1000, layers=12) | _VIT[name]
    )
    layers = sizes.pop("layers")
    depth_fields: dict[str, Any] = {"layers": layers} | dict(depth or {})
    _check_fields(DepthConfig, depth_fields)
    _check_fields(ViTConfig, changes)
    return ViTConfig(**(sizes | changes), depth=DepthConfig(**depth_fields))


def _check_fields(config: type, given: Mapping[str, Any]) -> None:
    accepted = [field.name for field in dataclasses.fields(config) if field.name != "depth"]
    for name in given:
        if name not in accepted:
            raise unknown(f"field of {config.__name__}", name, accepted)
