"""Parameters taken from other weights: resampled where that is planned, and laid out on a mesh."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

import odeformer.interop as interop
from odeformer import ModelConfig
from train.checkpoint.initial_plan import Plan, Source


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
