"""Weights as a function of depth: theta(t) = sum_k phi_k(t) w_k, with a basis phi_k on [0, L].

    constant   phi_k = 1 on [k L / K, (k + 1) L / K], else 0
    hat        phi_k falls linearly from 1 at the node k L / (K - 1) to 0 at its neighbours
    legendre   phi_k = P_k(2 t / L - 1)
    fourier    1, cos(2 pi t / L), sin(2 pi t / L), cos(4 pi t / L), sin(4 pi t / L), ...

Sources: Massaroli, Poli, Park, Yamashita, Asama, 'Dissecting Neural ODEs', 2020, arXiv 2002.08071;
Queiruga, Erichson, Hodgkinson, Mahoney, 'Stateful ODE-Nets using Basis Function Expansions', 2021,
arXiv 2106.10820.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from odeformer.transformer.sharding import GROUPS

BASES = ("constant", "hat", "legendre", "fourier")


class Depth(Protocol):
    """What weights over depth need of a `DepthConfig`."""

    @property
    def layers(self) -> int: ...

    @property
    def basis(self) -> str: ...

    @property
    def length(self) -> float: ...


class Weights(NamedTuple):
    """Weights over depth, divided into what single groups read and what all groups read.

    Attributes:
      scanned: weights that are scanned with the groups, [G, ...]; None where all groups read the
        same ones.
      common: weights that all groups read, [K, ...]; None where each group reads its own.
      of_group: (an entry of `scanned`, `common`) -> the theta of that group.
      at: (theta of a group, s, offset) -> one layer's parameters at the group's local time s; None
        where theta is one layer's parameters already.
    """

    scanned: Any
    common: Any
    of_group: Callable[[Any, Any], Any]
    at: Callable[[Any, jax.Array, jax.Array], Any] | None


def functions(basis: str, count: int, length: float, t: Any) -> Any:
    """Returns the values of a basis, phi_0(t), ..., phi_{K - 1}(t).

    Args:
      basis: one of `BASES`.
      count: K, number of functions.
      length: L, the end of the interval [0, L]; outside of it each phi_k keeps the value at the
        nearer end.
      t: times of any shape; a JAX array, whose dtype the result has, or anything else, for which
        the result is float64 of NumPy.

    Returns:
      [..., K].
    """
    # NumPy is for projections, which are solved in float64 whether or not JAX has it.
    xp: Any = jnp if isinstance(t, jax.Array) else np
    t = xp.clip(xp.asarray(t), 0.0, length)

    if basis == "constant":
        group = xp.clip(xp.floor(t * (count / length)), 0.0, count - 1.0)
        values = [xp.where(group == k, 1.0, 0.0) for k in range(count)]
    elif basis == "hat":
        place = t * ((count - 1) / length)
        values = [xp.clip(1.0 - xp.abs(place - float(k)), 0.0, 1.0) for k in range(count)]
    elif basis == "legendre":
        values = _legendre(count, t * (2.0 / length) - 1.0)
    else:
        angle = t * (2.0 * math.pi / length)
        waves = [(xp.cos(k * angle), xp.sin(k * angle)) for k in range(1, (count + 1) // 2)]
        values = [xp.ones_like(t), *(wave for pair in waves for wave in pair)]

    return xp.stack(values, axis=-1).astype(t.dtype)


def _legendre(count: int, x: Any) -> list[Any]:
    """P_0, ..., P_{K - 1} by (k + 1) P_{k + 1} = (2 k + 1) x P_k - k P_{k - 1}."""
    values = [0.0 * x + 1.0, x]
    for k in range(1, count - 1):
        values.append(((2 * k + 1) * x * values[k] - k * values[k - 1]) / (k + 1))

    return values[:count]


def combine(values: Any, stacked: Any) -> Any:
    """Returns sum_k values_k w_k of each leaf w [K, ...], in the leaf's dtype."""

    def leaf(w: jax.Array) -> jax.Array:
        # Written out: XLA's sum over a leading axis took 300 times as long on a CPU, and a matrix
        # product may be rounded to bfloat16.
        first, *others = (values[k] * w[k].astype(values.dtype) for k in range(len(w)))
        return functools.reduce(operator.add, others, first).astype(w.dtype)

    return jax.tree.map(leaf, stacked)


def weights_over_depth(depth: Depth, theta: Any, start: int = 0) -> Weights:
    """Returns stacked parameters as weights over depth.

    Args:
      depth: the basis, and how the depth is divided into groups.
      theta: the stacked parameters, [K, ...].
      start: the depth-time at which the stack begins, in layers.
    """
    basis, layers, length = depth.basis, depth.layers, depth.length
    if basis == "constant":
        return Weights(theta, None, lambda theta, _: theta, None)

    def at(theta: Any, s: jax.Array, offset: jax.Array) -> Any:
        # Of an element theta holds its two nodes, and s is the time within it.
        if basis == "hat":
            return combine(functions("hat", 2, length, s), theta[GROUPS])

        count = len(jax.tree.leaves(theta)[0])
        return combine(functions(basis, count, layers, s + offset - start), theta[GROUPS])

    if basis == "hat":
        pairs = jax.tree.map(lambda w: jnp.stack([w[:-1], w[1:]], axis=1), theta)
        return Weights(pairs, None, lambda pair, _: {GROUPS: pair}, at)

    # GROUPS names parameters that are stacked, whose leading axis is never split over a mesh.
    return Weights(None, theta, lambda _, theta: {GROUPS: theta}, at)


def init_coefficients(
    basis: str, count: int, init: Callable[[jax.Array], Any], key: jax.Array
) -> Any:
    """Returns initial coefficients, [K, ...] each.

    Under `constant` and `hat` each w_k is initialised as a layer of its own. Under `legendre` and
    `fourier` w_0 is, and all other w_k are 0, so that theta(t) is the same at every t.

    Args:
      basis: one of `BASES`.
      count: K.
      init: key -> one layer's parameters.
      key: a PRNG key.
    """
    if basis in ("constant", "hat"):
        return jax.vmap(init)(jax.random.split(key, count))

    def append_zeros(w: jax.Array) -> jax.Array:
        return jnp.concatenate([w[None], jnp.zeros((count - 1, *w.shape), w.dtype)])

    return jax.tree.map(append_zeros, init(key))
