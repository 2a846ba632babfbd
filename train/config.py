"""The border between a ConfigDict and the frozen dataclasses that everything behind it reads."""

import dataclasses
import json
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from odeformer import DepthConfig, ViTConfig, solvers
from odeformer.errors import unknown
from train.errors import BadInput

CHANGEABLE_ON_RESUME = ("train_steps", "mesh", "parallel", "checkpoint", "eval", "log")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training images, made on the device; 0 (or False) leaves one out."""

    shift_px: float  # affine map: either way, along each axis, in pixels
    rotate_degrees: float  # affine map: either way
    zoom: float  # affine map: as a fraction, either way: 0.1 scales by 0.9 to 1.1
    crop_padding_px: int  # padded crop: zeros around the image, from which one of its size is cut
    crop_min_area: float  # resized crop: least part of the image's area; 0: no resized crop
    flip: bool  # left to right, every second image
    randaugment_ops: int  # RandAugment: operations an image
    randaugment_magnitude: float  # RandAugment: their strength, 0 to 10
    erasing: float  # probability that a random rectangle is replaced by noise
    mixup: float  # alpha of the Beta distribution that two images are mixed by
    cutmix: float  # alpha of the Beta distribution of the area cut from another image


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the examples come from."""

    name: str  # 'digits', or the name of a tensorflow-datasets set with 'image' and 'label'
    data_dir: str | None  # where prepared sets lie; None: tensorflow-datasets' own default
    fold: int | None  # 0 to 4: the fifth that is tested on in cross-validation; digits alone
    validation: int  # examples held out of the training split where the set has no validation
    repeats: int  # how often a batch holds each of its examples, each time augmented anew
    workers: int  # processes that decode images of varying size; 0: none, in this process
    skip_corrupt: bool  # leave out records that cannot be decoded, rather than stop
    augment: AugmentConfig


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and cosine decay, an average of the weights, and label smoothing."""

    learning_rate: float  # at its peak
    warmup_steps: int
    weight_decay: float  # on kernels alone
    b1: float
    b2: float
    clip_norm: float | None  # of the gradient as a whole; None: no clipping
    ema_decay: float | None  # of the weights' moving average; None: none is kept
    label_smoothing: float


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The sizes of the device mesh's axes; -1 takes all devices."""

    data: int


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When a run saves itself, and how many saves it keeps."""

    every_steps: int
    keep: int


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

    seed: int
    train_steps: int
    batch_size: int
    data: DataConfig
    model: ViTConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    checkpoint: CheckpointConfig
    eval: EvalConfig
    log: LogConfig

    def __post_init__(self):
        positive = {
            "train_steps": self.train_steps,
            "batch_size": self.batch_size,
            "data.repeats": self.data.repeats,
            "checkpoint.every_steps": self.checkpoint.every_steps,
            "checkpoint.keep": self.checkpoint.keep,
            "eval.every_steps": self.eval.every_steps,
            "eval.batch_size": self.eval.batch_size,
            "log.every_steps": self.log.every_steps,
            "optimizer.learning_rate": self.optimizer.learning_rate,
            "optimizer.clip_norm": self.optimizer.clip_norm,
        }
        for name, value in positive.items():
            if value is not None and not value > 0:
                raise BadInput(f"config.{name} is greater than 0; {value} was given")
        fractions = {
            "optimizer.b1": self.optimizer.b1,
            "optimizer.b2": self.optimizer.b2,
            "optimizer.ema_decay": self.optimizer.ema_decay,
            "optimizer.label_smoothing": self.optimizer.label_smoothing,
            "data.augment.zoom": self.data.augment.zoom,
            "data.augment.crop_min_area": self.data.augment.crop_min_area,
        }
        for name, value in fractions.items():
            if value is not None and not 0 <= value < 1:
                raise BadInput(f"config.{name} is in [0, 1); {value} was given")
        others = {
            "seed": self.seed,
            "optimizer.weight_decay": self.optimizer.weight_decay,
            "data.validation": self.data.validation,
            "data.workers": self.data.workers,
            "data.augment.shift_px": self.data.augment.shift_px,
            "data.augment.rotate_degrees": self.data.augment.rotate_degrees,
            "data.augment.crop_padding_px": self.data.augment.crop_padding_px,
            "data.augment.randaugment_ops": self.data.augment.randaugment_ops,
            "data.augment.mixup": self.data.augment.mixup,
            "data.augment.cutmix": self.data.augment.cutmix,
        }
        for name, value in others.items():
            if not value >= 0:
                raise BadInput(f"config.{name} is 0 or more; {value} was given")
        bounds = {
            "data.augment.randaugment_magnitude": (self.data.augment.randaugment_magnitude, 10),
            "data.augment.erasing": (self.data.augment.erasing, 1),
        }
        for name, (value, most) in bounds.items():
            if not 0 <= value <= most:
                raise BadInput(f"config.{name} is in [0, {most}]; {value} was given")
        if not 0 <= self.optimizer.warmup_steps < self.train_steps:
            raise BadInput(
                f"config.optimizer.warmup_steps={self.optimizer.warmup_steps} does not lie in "
                f"[0, train_steps={self.train_steps}): shorten the warm-up or train longer"
            )


def from_config_dict(cfg: ml_collections.ConfigDict | Mapping[str, Any]) -> RunConfig:
    """Returns the frozen config of a ConfigDict.

    Args:
      cfg: with the keys of RunConfig; `depth`, the fields of DepthConfig, stands beside `model`.

    Raises:
      BadInput: a key that is unknown (the message names the nearest known one) or missing, a value
        of the wrong type or out of range.
    """
    given = cfg.to_dict() if isinstance(cfg, ml_collections.ConfigDict) else dict(cfg)
    accepted = {field.name for field in dataclasses.fields(RunConfig)} | {"depth"}
    for key in given:
        if key not in accepted:
            raise _unknown_key(key, sorted(accepted))
    for group in ("depth", "model"):
        if not isinstance(given.get(group), Mapping):
            was = f"{given[group]!r} was given" if group in given else "it is missing"
            raise BadInput(f"config.{group} is a group of keys; {was}")
    depth = _build(DepthConfig, given.pop("depth"), "depth")
    return _build(RunConfig, given | {"model": {**given["model"], "depth": depth}}, "")


def to_config_dict(given: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns a ConfigDict of plain values, as saved with a run, that flags can override.

    A None becomes a typed placeholder, without which no flag could set it.
    """
    hints = {"depth": DepthConfig, "model": ViTConfig, **typing.get_type_hints(RunConfig)}
    return ml_collections.ConfigDict(_with_placeholders(dict(given), hints))


def save(cfg: ml_collections.ConfigDict) -> str:
    """Returns the config as JSON, for `load`."""
    return json.dumps(cfg.to_dict(), indent=2, sort_keys=True)


def load(text: str) -> ml_collections.ConfigDict:
    """Returns the ConfigDict that `save` wrote."""
    return to_config_dict(json.loads(text))


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
    old, new = flatten(saved), flatten(given)
    return [
        f"{key}: {old.get(key)!r} in the workdir, {new.get(key)!r} given"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key.split(".")[0] not in CHANGEABLE_ON_RESUME
    ]


def for_evaluation(given: Mapping[str, Any], changed: Collection[str]) -> dict[str, Any]:
    """Returns a run's config to evaluate under: what was changed replaces what stands against it.

    A tolerance replaces the run's fixed steps, fixed steps or a solver without an error estimate
    replace its tolerances. No gradient is taken, so the adjoint is the default one.

    Args:
      given: the run's config with the changes.
      changed: the keys that were changed, as 'depth.solver'.
    """
    depth = {**given["depth"], "adjoint": "checkpoint", "policy": None}
    fixed = not {"depth.rtol", "depth.atol", "depth.max_steps"} & set(changed) and (
        "depth.steps" in changed
        or (depth["solver"] in solvers.NAMES and not solvers.is_adaptive(depth["solver"]))
    )
    if fixed:
        depth |= {"rtol": None, "atol": None, "max_steps": None, "per_sample": False}
    elif "depth.rtol" in changed and "depth.steps" not in changed:
        depth["steps"] = None
    return {**given, "depth": depth}


def _unknown_key(path: str, accepted: list[str]) -> BadInput:
    prefix = path.rpartition(".")[0]
    names = [f"{prefix}.{name}" if prefix else name for name in accepted]
    return BadInput(str(unknown("config key", path, names)))


def _build(cls: Any, given: Mapping[str, Any], path: str) -> Any:
    """Builds a dataclass from a mapping, checking names, presence and types."""
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values = {}
    for key, value in given.items():
        where = f"{path}.{key}" if path else key
        if key not in fields:
            raise _unknown_key(where, [name for name in fields if name != "depth"])
        hint = hints[key]
        if dataclasses.is_dataclass(hint) and not dataclasses.is_dataclass(value):
            if not isinstance(value, Mapping):
                raise BadInput(f"config.{where} is a group of keys; {value!r} was given")
            value = _build(hint, value, where)
        values[key] = _typed(value, hint, where)
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if name not in values and required:
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
    if isinstance(value, int) and not isinstance(value, bool) and int not in origins:
        value = float(value) if float in origins else value
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
