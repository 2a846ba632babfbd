"""The border between a ConfigDict and the frozen dataclasses that everything behind it reads."""

import dataclasses
import json
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from odeformer import DepthConfig, LMConfig, TextConfig, ViTConfig, solvers
from odeformer.errors import unknown
from odeformer.models.registry import ModelConfig
from train.config.data import PACKINGS, ImageDataConfig, LanguageDataConfig, SentenceDataConfig
from train.config.paths import as_stored, with_absolute_paths
from train.config.ranges import LARGEST_FLOAT, check_ranges
from train.errors import BadInput

CHANGEABLE_ON_RESUME = ("train_steps", "mesh", "parallel", "checkpoint", "guard", "eval", "log")


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a run of one kind is configured by."""

    model: type
    data: type


TASKS = {  # the values of config.task
    "images": Kind(ViTConfig, ImageDataConfig),
    "language": Kind(LMConfig, LanguageDataConfig),
    "sentences": Kind(TextConfig, SentenceDataConfig),
}

# What a checkpoint may be the best by -> the sign with which more of it is better.
BEST = {"val/loss": -1, "val/accuracy": 1}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and cosine decay, an average of the weights, and label smoothing."""

    learning_rate: float  # at its peak
    warmup_steps: int
    weight_decay: float  # on kernels and token embeddings alone
    b1: float
    b2: float
    clip_norm: float | None  # of the gradient as a whole; None: no clipping
    ema_decay: float | None  # of the weights' moving average; None: none is kept
    label_smoothing: float


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The sizes of the device mesh's axes; their product is the number of devices.

    At most one of them is -1: it takes the devices that the others leave.
    """

    data: int  # the batch is split over it, the state whole along it
    fsdp: int  # the batch and the state are split over it
    tensor: int  # heads, MLP and vocabulary are split over it


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """How a training step is spread over the mesh."""

    mode: str  # 'jit': the whole batch is one; 'shard_map': each shard of the data axis by itself
    accumulate: int  # parts of a batch whose gradients are added up one after the other


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When a run saves itself, and which of its checkpoints it keeps."""

    every_steps: int
    keep: int  # the newest ones
    best: str | None  # beside them the best by this metric of the validation split; or 'none'
    spare_dir: str | None  # where a run that can no longer save into its workdir saves itself


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """When a batch is skipped, and what follows; loss and gradient must be finite in any case."""

    sigmas: float | None  # standard deviations above the mean of the recent ones; None: any
    in_a_row: int  # skipped batches after which the run goes back to its last checkpoint
    returns: int  # of these, after which the next one stops the run


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """When and in what batches a run is evaluated on the validation split."""

    every_steps: int
    batch_size: int


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """How often the training metrics are written."""

    every_steps: int


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All that defines a run."""

    task: str  # a name of TASKS, which says what model and data are
    seed: int
    train_steps: int
    batch_size: int
    data: ImageDataConfig | LanguageDataConfig | SentenceDataConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    parallel: ParallelConfig
    checkpoint: CheckpointConfig
    guard: GuardConfig
    eval: EvalConfig
    log: LogConfig

    def __post_init__(self):
        check_ranges(self, _WORDS)


_WORDS = {
    "data.packing": PACKINGS,
    "parallel.mode": ("jit", "shard_map"),
    "checkpoint.best": (*BEST, "none"),
}


def from_config_dict(cfg: ml_collections.ConfigDict | Mapping[str, Any]) -> RunConfig:
    """Returns the frozen config of a ConfigDict.

    Args:
      cfg: with the keys of RunConfig; `depth`, the fields of DepthConfig, stands beside `model`.

    Raises:
      BadInput: a key that is unknown (the message names the nearest known one) or missing, a value
        of the wrong type or out of range.
    """
    given = cfg.to_dict() if isinstance(cfg, ml_collections.ConfigDict) else dict(cfg)
    given = with_absolute_paths(given)
    accepted = {field.name for field in dataclasses.fields(RunConfig)} | {"depth"}
    for key in given:
        if key not in accepted:
            raise _unknown_key(f"{key}", sorted(accepted))
    kind = _kind(given)
    for group in ("depth", "model", "data"):
        if not isinstance(given.get(group), Mapping):
            was = f"{given[group]!r} was given" if group in given else "it is missing"
            raise BadInput(f"config.{group} is a group of keys; {was}")
    if "depth" in given["model"]:
        raise BadInput(
            "config.model.depth is no key: the depth stands beside the model; set config.depth"
        )
    depth = _build(DepthConfig, given.pop("depth"), "depth")
    model = _build(kind.model, {**given["model"], "depth": depth}, "model")
    data = _build(kind.data, given["data"], "data")
    return _build(RunConfig, given | {"model": model, "data": data}, "")


def _kind(given: Mapping[str, Any]) -> Kind:
    if "task" not in given:
        raise BadInput(f"config.task is missing; it is one of {', '.join(TASKS)}")
    task = _typed(given["task"], str, "task")
    if task not in TASKS:
        raise BadInput(f"config.task: {unknown('task', task, TASKS)}")
    return TASKS[task]


def to_config_dict(given: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns a ConfigDict of plain values, as saved with a run, that flags can override.

    A None becomes a typed placeholder, without which no flag could set it.
    """
    kind = _kind(given)
    hints = {**typing.get_type_hints(RunConfig), "depth": DepthConfig}
    hints |= {"model": kind.model, "data": kind.data}
    return ml_collections.ConfigDict(_with_placeholders(dict(given), hints))


def save(cfg: ml_collections.ConfigDict) -> str:
    """Returns the config as JSON, for `load`."""
    return json.dumps(cfg.to_dict(), indent=2, sort_keys=True)


def load(text: str) -> ml_collections.ConfigDict:
    """Returns the ConfigDict that `save` wrote."""
    return to_config_dict(as_stored(json.loads(text)))


def flatten(given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {'depth.solver': 'rk4', ...} of a nested config."""
    flat = {}
    for key, value in given.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def resume_conflicts(saved: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Returns a line for each key that differs and may not on resume."""
    old, new = flatten(as_stored(saved)), flatten(as_stored(given))
    return [
        f"{key}: {old.get(key)!r} in the workdir, {new.get(key)!r} given"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key.split(".")[0] not in CHANGEABLE_ON_RESUME
    ]


def for_evaluation(given: Mapping[str, Any], changed: Collection[str]) -> dict[str, Any]:
    """Returns a run's config to evaluate under: what was changed replaces what stands against it.

    A tolerance replaces the run's fixed steps, fixed steps or a solver without an error estimate
    replace its tolerances. No gradient is taken, so the adjoint is the default one; whole copies
    of the model are spread over the devices that are there, whatever mesh it was trained on.

    Args:
      given: the run's config with the changes.
      changed: the keys that were changed, as 'depth.solver'.
    """
    depth = {**given["depth"], "adjoint": "checkpoint", "policy": None}
    asked = {key for key in depth if f"depth.{key}" in changed and depth[key] is not None}
    fixed = not {"rtol", "atol", "max_steps"} & asked and (
        "steps" in asked
        or ("depth.rtol" in changed and depth["rtol"] is None)
        or (depth["solver"] in solvers.NAMES and not solvers.is_adaptive(depth["solver"]))
    )
    if fixed:
        depth |= {"rtol": None, "atol": None, "max_steps": None, "per_sample": False}
    elif "rtol" in asked and "steps" not in asked:
        depth["steps"] = None
    mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    mesh |= {key: given["mesh"][key] for key in mesh if f"mesh.{key}" in changed}
    return {**given, "depth": depth, "mesh": mesh, "parallel": {"mode": "jit", "accumulate": 1}}


def _unknown_key(path: str, accepted: list[str]) -> BadInput:
    prefix = path.rpartition(".")[0]
    names = [f"{prefix}.{name}" if prefix else name for name in accepted]
    return BadInput(str(unknown("config key", path, names)))


def _build(cls: Any, given: Mapping[str, Any], path: str) -> Any:
    """Builds a dataclass from a mapping, checking names, presence and types."""
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    values = {}
    for key, value in given.items():
        where = f"{path}.{key}" if path else key
        if key not in names:
            raise _unknown_key(where, [name for name in names if name != "depth"])
        hint = hints[key]
        if dataclasses.is_dataclass(hint) and not dataclasses.is_dataclass(value):
            if not isinstance(value, Mapping):
                raise BadInput(f"config.{where} is a group of keys; {value!r} was given")
            value = _build(hint, value, where)
        values[key] = _typed(value, hint, where)
    for name in names:
        if name not in values:  # the library's defaults are not the run's
            raise BadInput(f"config.{path + '.' if path else ''}{name} is missing")
    try:
        return cls(**values)
    except BadInput:
        raise
    except ValueError as error:
        raise BadInput(f"config.{path}: {error}") from error


def _typed(value: Any, hint: Any, path: str) -> Any:
    """Returns the value as its hint's type, or refuses it; an int serves as a float."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    origins = tuple(typing.get_origin(kind) or kind for kind in kinds)
    if isinstance(value, list) and tuple in origins:
        value = tuple(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and float in origins:
        if not abs(value) <= LARGEST_FLOAT:
            raise BadInput(f"config.{path} is a finite number of float32; {value!r} was given")
        value = float(value)
    wrongly_bool = isinstance(value, bool) and bool not in origins
    if wrongly_bool or not isinstance(value, origins):
        names = " or ".join("nothing" if o is type(None) else o.__name__ for o in origins)
        raise BadInput(f"config.{path} takes {names}; {value!r} was given")
    return value


def _with_placeholders(given: Mapping[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces each None by a placeholder of its hint's type, all the way down."""
    filled = {}
    for key, value in given.items():
        hint = hints.get(key)
        if isinstance(value, Mapping):
            inner = typing.get_type_hints(hint) if hint is not None else {}
            value = _with_placeholders(value, inner)
        elif value is None and isinstance(hint, types.UnionType):
            kind = next(arg for arg in typing.get_args(hint) if arg is not type(None))
            value = config_dict.placeholder(kind)
        filled[key] = value
    return filled
