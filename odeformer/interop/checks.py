"""What is read and written: architectures, values of config.json, tensors, models."""

from collections.abc import Collection, Mapping
from typing import Any

from odeformer.errors import check_kind
from odeformer.models.lm import LMConfig
from odeformer.models.vit import ViTConfig
from odeformer.transformer.depth import DepthConfig

Shapes = Mapping[str, tuple[int, ...]]

# By model_type: their layers norm the sum.
POST_NORM = (
    *("albert", "bart", "bert", "camembert", "deberta", "distilbert", "electra", "marian"),
    *("openai-gpt", "roberta", "xlm-roberta"),
)


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

    raise ValueError(
        f"config.json names the architecture {names[0]!r} (model_type {kind!r}), which is not "
        f"read; those that are: {', '.join(accepted)}"
    )


def check_value(raw: Mapping[str, Any], key: str, accepted: Any, default: Any) -> None:
    """Raises ValueError where config.json says anything but the one value that is accepted."""
    if raw.get(key, default) != accepted:
        raise ValueError(
            f"config.json says {key}={raw[key]!r}, which these models do not have: {accepted!r} "
            "is accepted, and without the key it is what holds"
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


def check_writable(config: Any) -> None:
    """Raises ValueError for a model that no pre-norm transformer of these families is."""
    check_kind("save_pretrained", config, ViTConfig, LMConfig)
    depth = config.depth

    needed = {
        "depth.solver": (depth.solver, "lie_trotter"),
        "depth.share": (depth.share, 1),
        "depth.basis": (depth.basis, "constant"),
        "depth.rtol": (depth.rtol, None),
        "depth.steps": (depth.fixed_steps, 1),
        "model.terms": (config.terms, ("attention", "mlp")),
        "model.time": (config.time, "none"),
        "model.centre": (config.centre, 0),
        "model.positions": (config.positions, "learned"),
    }
    if isinstance(config, ViTConfig):
        needed["model.pool"] = (config.pool, "token")

    for key, (given, accepted) in needed.items():
        if given != accepted:
            raise ValueError(
                f"a model of {key}={given!r} is none of the layout's architectures, which have "
                f"{key}={accepted!r}: write it by save_safetensors, under our own names"
            )
