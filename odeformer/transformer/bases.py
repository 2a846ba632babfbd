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
    """Weights over depth, of which each group is given what it reads.

    Attributes:
      scanned: what is scanned along with the groups, [G, ...]; None where all groups read the same.
      common: what all groups read, [K, ...]; None where each reads its own.
      of_group: (an entry of `scanned`, `common`) -> the theta of its group.
      at: (theta of a group, s, offset) -> one layer's parameters at the group's local time s; None
        where theta is one layer's parameters.
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
      length: L, the end of the interval [0, L]; beyond its ends each phi_k keeps its value there.
      t: times: a JAX array of any shape, of whose dtype the result is; else float64 of NumPy.

    Returns:
      [..., K].
    """
    # In NumPy for projections, whose systems are solved in float64 whatever JAX computes in.
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
    """Returns stacked parameters as the weights of the groups.

    Args:
      depth: how the depth is integrated.
      theta: the parameters, [K, ...].
      start: the depth-time at which the stack begins, in layers.
    """
    basis, layers, length = depth.basis, depth.layers, depth.length
    if basis == "constant":
        return Weights(theta, None, lambda theta, _: theta, None)

    def at(theta: Any, s: jax.Array, offset: jax.Array) -> Any:
        # On the local time within an element, whose two nodes alone are here.
        if basis == "hat":
            return combine(functions("hat", 2, length, s), theta[GROUPS])

        count = len(jax.tree.leaves(theta)[0])
        return combine(functions(basis, count, layers, s + offset - start), theta[GROUPS])

    if basis == "hat":
        pairs = jax.tree.map(lambda w: jnp.stack([w[:-1], w[1:]], axis=1), theta)
        return Weights(pairs, None, lambda pair, _: {GROUPS: pair}, at)

    # Under the name of stacked parameters, whose leading axis no mesh splits.
    return Weights(None, theta, lambda _, theta: {GROUPS: theta}, at)


def init_coefficients(basis: str, count: int, init: Callable[[jax.Array], Any], key: Any) -> Any:
    """Returns initial coefficients, [K, ...] each.

    A constant's and each node of `hat` are those of a layer of their own. Of the others w_0 is a
    layer's, and all else 0: theta(t) is the same at every t.

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
