"""What is refused of timm's models: names that are not read, and what ours lack."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

# What says a size, or what there is.
SIZES = ("embed_dim", "depth", "num_heads", "mlp_ratio", "patch_size", "in_chans", "img_size")
SIZES += ("num_classes", "init_values", "reg_tokens", "no_embed_class", "distilled", "qkv_bias")

# What our models have, and timm's may lack; or the other way round.
FIXED: dict[str, tuple[Any, ...]] = {
    "global_pool": ("token",),
    "class_token": (True,),
    "pos_embed": ("learn",),
    "proj_bias": (True,),
    "final_norm": (True,),
    "fc_norm": (None, False),
    **dict.fromkeys(("pre_norm", "qk_norm", "scale_attn_norm", "scale_mlp_norm"), (False,)),
    "act_layer": (None, "gelu_tanh", "relu", "silu", "gelu"),
    "norm_layer": (None,),
}

# What acts in training alone, or on images of another size.
IGNORED = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate")
IGNORED += ("drop_path_rate", "weight_init", "fix_init", "dynamic_img_size", "dynamic_img_pad")


def unknown_model(name: object, accepted: str) -> ValueError:
    """Returns the error for a model of timm that is not read."""
    return ValueError(
        f"config.json names timm's model {name!r}, which is not read; those that are: {accepted}, "
        "as in vit_base_patch16_224. Others pool all patches (gap), norm before the first layer "
        "(clip) or have rotary positions of a grid, which our models lack"
    )


def check_timm(path: pathlib.Path, raw: Mapping[str, Any], filters: Sequence[str]) -> None:
    """Raises ValueError where timm's config does not say how images are prepared, or oddly."""
    missing = [key for key in ("input_size", "mean", "std") if key not in raw]
    if missing:
        raise ValueError(
            f"{path} lacks {' and '.join(missing)} in pretrained_cfg: take them from the model's "
            "page"
        )

    mode, (_, height, width) = raw.get("crop_mode") or "center", raw["input_size"]
    if mode != "squash" and (mode != "center" or height != width):
        raise ValueError(
            f"{path} says crop_mode={mode!r} of {height} x {width} pixels; 'squash' is accepted, "
            "and 'center' of sides that are equal: prepare the images by timm's own transforms"
        )

    name = raw.get("interpolation", "bilinear")
    if name not in filters:
        raise ValueError(
            f"{path} says interpolation={name!r}; {', '.join(filters)} are accepted: correct the "
            "file"
        )


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raises ValueError for a model that timm made with something that ours lack."""
    for name, value in arguments.items():
        if name in FIXED and value not in FIXED[name]:
            raise ValueError(
                f"config.json says {name}={value!r} of a model of timm, which our models lack; "
                f"{FIXED[name][-1]!r} is accepted"
            )

        if name not in (*SIZES, *FIXED, *IGNORED):
            raise ValueError(
                f"config.json says {name}={value!r} in model_args, which is not read; of timm's "
                f"arguments these are: {', '.join((*SIZES, *FIXED))}"
            )

    if arguments.get("reg_tokens") and not arguments.get("no_embed_class"):
        raise ValueError(
            f"config.json says reg_tokens={arguments['reg_tokens']} with positions of their own, "
            "which our registers lack; no_embed_class=True is accepted"
        )
