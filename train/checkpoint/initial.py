"""Weights that a run begins with: those of another run, or of a pretrained model."""

import functools
import math
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh

import odeformer.interop as interop
from train.checkpoint.initial_checks import (
    check_tokenizer,
    reading_pretrained,
    warn_of_classes,
)
from train.checkpoint.initial_plan import (
    Source,
    differences,
    find_source,
    is_of_head,
    plan_initial,
    size_to_read,
)
from train.checkpoint.metadata import Initial
from train.checkpoint.parameters import abstract_parameters
from train.checkpoint.restore import restore_newest_weights
from train.checkpoint.workdir import read_inputs, read_tokenizer, saved_steps
from train.config.run import RunConfig
from train.devices.processes import is_primary
from train.state import TrainState, make_state, state_shardings

EMBEDDING = "embedding/embedding"


def check_initial(workdir: epath.Path, config: RunConfig, data: Any) -> None:
    """Refuses weights that a run cannot begin with; nothing is allocated or written.

    Args:
      workdir: of the run; one that is resumed has its weights.
      config: of the run; one without config.init.path begins at random.
      data: its training split.

    Raises:
      BadInput: nothing there, a run of another task, parameters that do not fit, patterns that
        match none, or embeddings of another tokeniser.
    """
    if config.init.path is None or saved_steps(workdir):
        return

    source = find_source(config)
    plan = plan_initial(config, source)
    if source.is_run and EMBEDDING in plan.loaded:
        check_tokenizer(source.path, read_tokenizer(source.path), data.tokenizer)


def load_initial(
    workdir: epath.Path,
    config: RunConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    state: TrainState,
) -> tuple[TrainState, Initial]:
    """Returns a run's first state with the weights that config.init names, and whence they are.

    Args:
      workdir: of the run, with the names of its classes.
      config: of the run.
      optimizer: of the run, whose state begins with these weights.
      mesh: the devices.
      state: the first state, at random.

    Raises:
      BadInput: weights that cannot be read, or do not fit.
    """
    source = find_source(config)
    plan = plan_initial(config, source)
    weights, step = _read(source, config, mesh)
    theirs = traverse_util.flatten_dict(weights, sep="/")
    ours: dict[str, Any] = dict(traverse_util.flatten_dict(state.params, sep="/"))

    for name in plan.loaded:
        ours[name] = _placed(theirs[name], ours[name])
    for name in plan.resampled:
        table = _positions(theirs[name], source.model, config.model, ours[name].shape[1])
        ours[name] = _placed(table, ours[name])

    # The optimiser's state may begin as a copy of the weights, as their average does.
    begin = jax.jit(
        functools.partial(make_state, config, optimizer),
        out_shardings=state_shardings(config, optimizer, mesh),
    )
    params = traverse_util.unflatten_dict(ours, sep="/")
    if source.is_run and is_primary() and any(map(is_of_head, plan.loaded)):
        warn_of_classes(source.path, read_inputs(source.path), read_inputs(workdir))
    return begin(params), Initial(
        path=source.path,
        step=step,
        loaded=len(plan.loaded),
        resampled=dict(plan.resampled),
        new=plan.new,
        unused=plan.unused,
        differs=tuple(differences(source.trained, config.model)),
    )


def _read(source: Source, config: RunConfig, mesh: Mesh) -> tuple[Any, int | None]:
    """The weights, and the step of the checkpoint that they are from."""
    if source.is_run:
        target = abstract_parameters(source.model, mesh)
        weights, metadata = restore_newest_weights(source.path, target)
        return weights, metadata.position.step

    with reading_pretrained(source.path):
        size = size_to_read(source.trained, config.model)
        _, variables = interop.load_pretrained(source.path, image_size=size)
    return variables["params"], None


def _placed(value: Any, like: jax.Array) -> jax.Array:
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
