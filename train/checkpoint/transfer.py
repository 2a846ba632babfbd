"""Parameters taken from the weights of something else: each one planned, then taken."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

import odeformer.interop as interop
from odeformer import ModelConfig, ViTConfig
from train.checkpoint.initial_checks import (
    check_has_checkpoint,
    check_kind,
    check_loaded,
    check_shapes,
    check_task,
    reading_pretrained,
)
from train.checkpoint.metadata import Initial
from train.checkpoint.restore import verified_config
from train.checkpoint.workdir import is_workdir, saved_steps
from train.config.patterns import check_matching, matches_any
from train.config.refining import at_step
from train.config.run import RunConfig
from train.devices.mesh import parameter_shapes

HEADS = ("head", "distillation_head")
POSITIONS = "positions"

# What a run may set otherwise than the one whose weights it takes, without a word.
_FREE = ("image_size", "classes", "dropout", "drop_path", "dtype", "attention", "fused", "depth")
_FREE_OF_DEPTH = ("adjoint", "policy")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where weights come from.

    Attributes:
      path: a workdir's, a folder's, or a name on the Hugging Face Hub.
      run: the config of the run that it is the workdir of; None of a pretrained model.
      trained: the model that the weights were trained as.
      model: the model that they are read as: for the run's size of images, if that is read so.
    """

    path: str
    run: RunConfig | None
    trained: ModelConfig
    model: ModelConfig

    @property
    def is_run(self) -> bool:
        """Whether it is a workdir."""
        return self.run is not None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What becomes of the parameters, by name.

    Attributes:
      loaded: as they are.
      resampled: what is done to them, in words.
      new: begin at random.
      unused: of the source's own, those that the run's model has not.
    """

    loaded: tuple[str, ...]
    resampled: Mapping[str, str]
    new: tuple[str, ...]
    unused: tuple[str, ...]


def find_source(config: RunConfig) -> Source:
    """Returns where a run's first weights come from."""
    path = config.init.path
    assert path is not None
    if is_workdir(path):
        run = verified_config(path)
        check_task(path, run.task, config.task)
        check_has_checkpoint(path, saved_steps(path))

        # As load_weights gives them, whose config is that of the last refinement over depth.
        run = at_step(run, run.train_steps)
        return Source(path, run, run.model, run.model)

    with reading_pretrained(path):
        trained = interop.load_config(path)
        check_kind(path, trained, config)

        read = interop.load_config(path, image_size=size_to_read(trained, config.model))
        return Source(path, None, trained, read)


def size_to_read(trained: Any, model: Any) -> tuple[int, int] | None:
    """Returns the size of images that gives a pretrained model the run's grid of patches."""
    # So that its positions are resampled where it is read, by the rule of its family.
    if not isinstance(trained, ViTConfig):
        return None
    rows, columns = model.grid
    return rows * trained.patch_size, columns * trained.patch_size


def plan_initial(config: RunConfig, source: Source) -> Plan:
    """Returns what becomes of each parameter.

    Raises:
      BadInput: parameters that do not fit, or patterns that match none.
    """
    ours, theirs = _shapes(config.model), _shapes(source.model)
    include, exclude = config.init.include, config.init.exclude
    check_matching("init.include", include, tuple(ours))
    check_matching("init.exclude", exclude, tuple(ours))

    loaded, resampled, new, unfit = [], {}, [], {}
    for name, shape in ours.items():
        chosen = not include or matches_any(name, include)
        if not chosen or matches_any(name, exclude):
            new.append(name)
        elif name == POSITIONS and (change := _change(config.model, source, ours, theirs)):
            resampled[name] = change
        elif theirs.get(name) == shape:
            loaded.append(name)
        elif is_of_head(name) and _is_other_head(shape, theirs.get(name), source):
            new.append(name)
        else:
            unfit[name] = (theirs.get(name), shape)

    check_shapes(source.path, unfit, is_adapted=config.lora.rank is not None)
    check_loaded(source.path, [*loaded, *resampled])
    unused = tuple(name for name in theirs if name not in ours)
    return Plan(tuple(loaded), resampled, tuple(new), unused)


def _shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    flat: Any = traverse_util.flatten_dict(parameter_shapes(model), sep="/")
    return {name: tuple(leaf.shape) for name, leaf in flat.items()}


def _is_other_head(ours: tuple[int, ...], theirs: tuple[int, ...] | None, source: Source) -> bool:
    """Whether a head is one of another number of classes, or there was none."""
    if theirs is None:
        return getattr(source.trained, "classes", None) == 0
    return theirs[:-1] == ours[:-1]


def is_of_head(name: str) -> bool:
    """Returns whether a parameter belongs to a head."""
    return name.split("/")[0] in HEADS


def _change(model: Any, source: Source, ours: Any, theirs: Any) -> str:
    """What is done to learned positions, in words; '' if nothing is, or nothing can be."""
    trained: Any = source.trained
    read: Any = source.model
    if POSITIONS not in theirs:
        return ""

    # Places of tokens that have none in the grid may be left out, and cannot be made up.
    before = theirs[POSITIONS][1] - math.prod(read.grid)
    left_out = before - (ours[POSITIONS][1] - math.prod(model.grid))
    if left_out < 0 or theirs[POSITIONS][-1] != ours[POSITIONS][-1]:
        return ""

    changes = [f"without those of {left_out} token(s) before the grid"] if left_out else []
    if trained.grid != model.grid:
        old, new = (" x ".join(map(str, grid)) for grid in (trained.grid, model.grid))
        changes.insert(0, f"resampled from {old} patches to {new}")
    return ", ".join(changes)


def take(
    plan: Plan, source: Source, weights: Any, model: ModelConfig, like: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the parameters that a plan takes, {name: array}.

    Args:
      plan: what becomes of each parameter.
      source: where the weights are from.
      weights: all of its model's parameters.
      model: of the run that takes them.
      like: an array of the dtype, shape and sharding of each parameter, or these alone, by name.
    """
    theirs = traverse_util.flatten_dict(weights, sep="/")
    taken = {name: _placed(theirs[name], like[name]) for name in plan.loaded}
    for name in plan.resampled:
        table = _positions(theirs[name], source.model, model, like[name].shape[1])
        taken[name] = _placed(table, like[name])

    return taken


def _placed(value: Any, like: Any) -> jax.Array:
    """An array in the dtype and on the devices of another one, each of which takes its part."""
    if getattr(value, "sharding", None) == like.sharding and value.dtype == like.dtype:
        return value

    # One that several processes share is the same in all of them only where it is replicated.
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        moved = jax.jit(lambda x: x.astype(like.dtype), out_shardings=like.sharding)
        return moved(value)

    array = np.asarray(value).astype(like.dtype)
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])


def _positions(table: Any, source: Any, model: Any, places: int) -> np.ndarray:
    """Learned positions on the run's grid, and of its tokens before the grid."""
    # Replicated, and so whole on any device.
    if isinstance(table, jax.Array):
        table = table.addressable_data(0)

    sized = interop.resample_positions(table, source.grid, model.grid)
    before = places - math.prod(model.grid)
    first = sized.shape[1] - math.prod(model.grid)
    return np.concatenate([sized[:, :before], sized[:, first:]], axis=1)


def describe(source: Source, plan: Plan, config: RunConfig, step: int | None) -> Initial:
    """Returns what is recorded of the weights that a run begins with, or adapts."""
    return Initial(
        path=source.path,
        step=step,
        loaded=len(plan.loaded),
        resampled=dict(plan.resampled),
        new=plan.new,
        unused=plan.unused,
        differs=tuple(differences(source.trained, config.model)),
    )


def differences(there: Any, here: Any) -> list[str]:
    """Returns what weights were trained under and a run sets otherwise, one text per key."""
    pairs = [
        ("model", there, here, _FREE),
        ("depth", there.depth, here.depth, _FREE_OF_DEPTH),
    ]
    found = []
    for group, was, now, free in pairs:
        for field in dataclasses.fields(now):
            old, new = getattr(was, field.name), getattr(now, field.name)
            if field.name not in free and old != new:
                found.append(f"{group}.{field.name} {old!r} there and {new!r} here")
    return found
