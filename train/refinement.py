"""Refines a run's state: weights, their average and the optimiser's moments, over depth."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from odeformer import resolution
from train.config.refining import at_step, not_refinable
from train.config.run import RunConfig
from train.state import TrainState, abstract_state

# The names under which optimisers keep averages of gradients, and of their squares.
_FIRST = ("mu", "trace")
_SECOND = ("nu", "v", "v_row", "v_col")


class Maps(NamedTuple):
    """The linear maps that refine the parts of a state, float64 [K', K] each.

    Attributes:
      weights: R of `odeformer.refine`, for the weights and their average.
      first: for averages of gradients.
      second: for averages of squared gradients.
    """

    weights: np.ndarray
    first: np.ndarray
    second: np.ndarray


def refinement_maps(depth: Any) -> Maps:
    """Returns the maps of a depth's refinement.

    A gradient is an integral over depth: half a group, or a node whose hat is half as wide, has
    half of it, so m becomes R m / 2 and v becomes R v / 4. Under `legendre` and `fourier` the
    moments of old coefficients stay as they are. New coefficients have had no gradient, so their m
    is 0. Their v is the mean over the old ones: from 0 their first updates would be several times
    the learning rate, because Adam corrects its bias only in the first steps of a run.

    Args:
      depth: the depth before the refinement.
    """
    weights = resolution.refinement(depth)
    if depth.basis in ("constant", "hat"):
        return Maps(weights, weights / 2, weights / 4)

    second = weights.copy()
    second[depth.sets :] = 1 / depth.sets
    return Maps(weights, weights, second)


def make_refine(
    config: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh, step: int
) -> Callable[[TrainState], TrainState]:
    """Returns the jitted function state -> state that refines a run after a step.

    Args:
      step: a step of config.depth.refine_at.

    Raises:
      BadInput: an optimiser whose state has arrays of unknown names.
    """
    before = at_step(config, step - 1)
    old, new = (abstract_state(c, optimizer, mesh) for c in (before, at_step(config, step)))
    maps = refinement_maps(before.model.depth)

    def refine(state: TrainState) -> TrainState:
        def leaf(path: tuple[Any, ...], x: jax.Array, target: Any) -> jax.Array:
            names = [str(getattr(key, "name", getattr(key, "key", ""))) for key in path]
            return _refined(names, x, target.shape, maps, config.optimizer.name)

        refined = jax.tree_util.tree_map_with_path(leaf, state, new)
        return dataclasses.replace(refined, guard=_expecting_more(state.guard, maps))

    # Before anything is compiled: what is refused is refused here.
    jax.eval_shape(refine, old)
    return jax.jit(refine, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, new))


def check_refinable(config: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> None:
    """Raises BadInput for an optimiser whose state cannot be refined as the config asks for."""
    for step in config.model.depth.refine_at:
        make_refine(config, optimizer, mesh, step)


def _refined(
    names: list[str], x: jax.Array, shape: tuple[int, ...], maps: Maps, optimizer: str
) -> jax.Array:
    """Refines one array of the state to the shape that it has in the refined state."""
    sets, fine = maps.weights.shape[::-1]
    is_factored_away = names[0] == "opt_state" and names[-1] == "kernel" and "groups" in names
    is_factored_away &= x.shape == shape and x.size > 1
    if x.shape == shape and not is_factored_away:
        return x

    # The name of a field of the state, such as 'mu', comes before those of the parameter.
    matrix = None
    if names[0] in ("params", "ema"):
        matrix = maps.weights
    elif any(name in _FIRST for name in names):
        matrix = maps.first
    elif any(name in _SECOND for name in names):
        matrix = maps.second

    if matrix is None or is_factored_away or (fine, *x.shape[1:]) != shape or len(x) != sets:
        raise not_refinable(optimizer, "/".join(names), x.shape)

    return resolution.along_depth(matrix, x)


def _expecting_more(guard: Any, maps: Maps) -> Any:
    """The guard, with recorded norms scaled up to what a gradient of more coefficients may have."""
    fine, sets = maps.first.shape
    factor = max(1.0, math.sqrt(fine / sets) * float(maps.first[0, 0]))
    return dataclasses.replace(guard, recent=guard.recent * np.array([1.0, factor], np.float32))
