"""What is read and written: architectures, values of config.json, tensors, models."""

from collections.abc import Collection, Mapping
from typing import Any

from odeformer.transformer.config import DepthConfig
from odeformer.transformer.heads import heads_of

Shapes = Mapping[str, tuple[int, ...]]

# By key, what a model has and what its layout accepts.
Needs = Mapping[str, tuple[Any, Any]]

# What is read of timm, whose models are named one by one.
TIMM = "vit_*, deit_*, deit3_* and vit_*_dinov2"

# By model_type: their layers norm the sum.
POST_NORM = (
    *("albert", "bart", "bert", "camembert", "deberta", "distilbert", "electra", "marian"),
    *("openai-gpt", "roberta", "xlm-roberta"),
)

# By model_type, of pre-norm models: what these have and the fields of our models do not.
LACKING = {
    "beit": "relative positions, as a bias of attention",
    "bloom": "positions as a bias of attention (ALiBi)",
    "clip": "a norm before the first layer, and two towers",
    "clip_vision_model": "a norm before the first layer",
    "convnext": "stages of several resolutions",
    "dinov3_vit": "rotary positions of a grid",
    "gemma": "RMS norms whose scale is 1 + weight",
    "gemma2": "norms of what a layer returns",
    "mamba": "state spaces",
    "mixtral": "experts in place of one MLP",
    "opt": "positions that begin at 2",
    "qwen2_moe": "experts in place of one MLP",
    "qwen3_moe": "experts in place of one MLP",
    "siglip_vision_model": "a head that attends to the tokens",
    "swin": "windows of attention, and stages of several resolutions",
    "t5": "relative positions as a bias of attention, and an encoder for the decoder",
    "vit_mae": "a decoder of masked patches",
}


def check_architecture(raw: Mapping[str, Any], accepted: Collection[str]) -> str:
    """Returns the architecture that a config.json names.

    Raises:
      ValueError: none, or one that is not among the accepted ones.
    """
    names: Any = raw.get("architectures") or [None]
    kind = raw.get("model_type")
    if names[0] in accepted:
        return names[0]

    if kind in POST_NORM:
        raise ValueError(
            f"{names[0]} (model_type {kind!r}) is post-norm: its layer, y = norm(y + f(y)), "
            "norms the state itself, so that it is no step of any solver of dy/dt = f(t, y), and "
            f"cannot be loaded; pre-norm models that can be: {', '.join(accepted)}"
        )

    lacks = f", as it has {LACKING[kind]}, which our models lack" if kind in LACKING else ""
    raise ValueError(
        f"config.json names the architecture {names[0]!r} (model_type {kind!r}), which is not "
        f"read{lacks}; those that are: {', '.join(accepted)}; and of timm: {TIMM}"
    )


def check_value(raw: Mapping[str, Any], key: str, accepted: Any, default: Any) -> None:
    """Raises ValueError where config.json says anything but the one value that is accepted."""
    if raw.get(key, default) != accepted:
        raise ValueError(
            f"config.json says {key}={raw[key]!r}, which these models do not have: {accepted!r} "
            "is accepted, and without the key it is what holds"
        )


def check_square(size: Any) -> None:
    """Raises ValueError for images whose grid of positions is not square."""
    if not isinstance(size, int):
        raise ValueError(
            f"config.json says image_size={size!r}: one side is accepted, as DINOv2 interpolates "
            "its positions on any grid that is not square"
        )


def check_keys(raw: Mapping[str, Any], what: str, keys: Collection[str]) -> None:
    """Raises ValueError where config.json lacks keys that belong to another one."""
    missing = [key for key in keys if key not in raw]
    if missing:
        raise ValueError(
            f"config.json lacks {', '.join(missing)} {what}: take the config of the model's page"
        )


def check_windows(raw: Mapping[str, Any], layers: int) -> None:
    """Raises ValueError where config.json says that layers see a window of the tokens alone."""
    kinds = raw.get("layer_types") or []
    windowed = bool(raw.get("use_sliding_window")) and raw.get("sliding_window", 1) is not None
    windowed &= raw.get("max_window_layers", 28) < layers
    if set(kinds) - {"full_attention"} or (windowed and not kinds):
        key = "layer_types" if kinds else "use_sliding_window"
        raise ValueError(
            f"config.json says {key}={raw[key]!r}: attention that sees a sliding window of the "
            "tokens, which these models do not have; every layer sees all tokens up to its own"
        )


def check_layers(depth: DepthConfig, layers: int) -> None:
    """Raises ValueError for a depth that does not have as many layers, each with its weights."""
    if (depth.layers, depth.share, depth.basis) != (layers, 1, "constant"):
        basis = "" if depth.basis == "constant" else f", basis={depth.basis!r}"
        raise ValueError(
            f"the weights are those of layers={layers}, each with its own (share=1); a depth of "
            f"layers={depth.layers}, share={depth.share}{basis} was given: change its solver, "
            "steps or adjoint alone"
        )


def check_tensors(where: str, expected: Shapes, found: Shapes) -> None:
    """Raises ValueError for tensors that are missing, left over, or of another shape.

    Args:
      where: what holds the tensors.
      expected: shapes that the model has, by name.
      found: shapes that there are.
    """
    faults = {
        "missing": [name for name in expected if name not in found],
        "left over": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {list(found[name])} in place of {list(shape)}"
            for name, shape in expected.items()
            if found.get(name, shape) != shape
        ],
    }
    told = [
        f"{len(names)} {fault}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for fault, names in faults.items()
        if names
    ]
    if told:
        raise ValueError(
            f"the tensors of {where} are not those of the model that its config describes ("
            f"{'; '.join(told)}): take the config and the weights of the same model"
        )


def plain_needs(config: Any, but: Collection[str] = ()) -> Needs:
    """Returns what a layout needs whose layers are those of ViT and of GPT-2.

    Args:
      but: fields that the layout has a place for.
    """
    heads, keys, size = heads_of(config)
    needed = {
        "model.positions": (config.positions, "learned"),
        "model.norm": (config.norm, "layer"),
        "model.gated": (config.gated, False),
        "model.kv_heads": (keys, heads),
        "model.head_size": (size, config.width / heads),
        "model.qk_norm": (config.qk_norm, False),
        "model.qkv_bias": (config.qkv_bias, True),
        "model.out_bias": (config.out_bias, True),
        "model.mlp_bias": (config.mlp_bias, True),
        "model.layer_scale": (config.layer_scale, None),
    }
    return {key: need for key, need in needed.items() if key.removeprefix("model.") not in but}


def check_writable(config: Any, needs: Needs) -> None:
    """Raises ValueError for a model that no pre-norm transformer of its family is."""
    depth = config.depth
    needed = {
        "depth.solver": (depth.solver, "lie_trotter"),
        "depth.share": (depth.share, 1),
        "depth.basis": (depth.basis, "constant"),
        "depth.rtol": (depth.rtol, None),
        "depth.reversible": (depth.reversible, None),
        "depth.steps": (depth.fixed_steps, 1),
        "model.terms": (config.terms, ("attention", "mlp")),
        "model.time": (config.time, "none"),
        "model.centre": (config.centre, 0),
    }
    for key, (given, accepted) in {**needed, **needs}.items():
        if given != accepted:
            raise ValueError(
                f"a model of {key}={given!r} is none of the layout's architectures, which have "
                f"{key}={accepted!r}: write it by save_safetensors, under our own names"
            )


def check_grid(places: int, grid: tuple[int, int]) -> None:
    """Raises ValueError for a table that has fewer places than the grid has patches."""
    rows, columns = grid
    if places < rows * columns:
        raise ValueError(
            f"a table of {places} positions is no grid of {rows} x {columns} patches: give the "
            "grid that it was trained on"
        )
