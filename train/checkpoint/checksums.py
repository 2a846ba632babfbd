"""Checksums of arrays that do not depend on how the arrays are laid out on the devices.

A leaf's words w_i (its bits as uint32, one word per entry of up to 32 bits) are summed modulo 2^32
under two sets of weights that depend on their places i in the whole array:

    a = sum_i h(w_i (2 h(i) + 1)),    b = sum_i h(w_i + h(i)),

where h is a one-to-one mixing function of 32 bits. Such sums are the same in whatever order and on
however many devices they are computed. A weight of a is odd, so that neither sum misses a change of
a single word; any other change is missed with a probability of 2^-64.
Source of h: MurmurHash3's finaliser (Appleby 2011, public domain).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from train.devices.mesh import replicated


def leaf_name(path: tuple[Any, ...]) -> str:
    """Returns one name for a leaf, whether its containers are dataclasses, dicts or lists."""
    keys = (getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))) for key in path)
    return "/".join(str(key) for key in keys)


def checksums(tree: Any) -> dict[str, str]:
    """Returns {leaf's name: 16 hexadecimal digits} of a tree of arrays on one mesh.

    Args:
      tree: of arrays, split over the mesh in any way; without a mesh, all on one device.
    """
    names = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    leaves = jax.tree.leaves(tree)

    # Without jit (JAX_DISABLE_JIT) arrays lie on one device, and their shardings have no mesh.
    mesh = getattr(leaves[0].sharding, "mesh", None)
    sums = jax.device_get(_make_summing(mesh)(leaves))

    return {name: f"{a:08x}{b:08x}" for name, (a, b) in zip(names, sums, strict=True)}


@functools.lru_cache(maxsize=8)
def _make_summing(mesh: Mesh | None) -> Any:
    """The jitted function leaves -> their sums, uint32 [leaves, 2], replicated."""
    # One program for all leaves: many programs over several devices, dispatched at once, can wait
    # for one another.
    return jax.jit(
        lambda leaves: jnp.stack([_sums(_words(leaf)) for leaf in leaves]),
        out_shardings=None if mesh is None else replicated(mesh),
    )


def _words(leaf: jax.Array) -> jax.Array:
    """The bits of an array: one word per entry, or two along a new last axis for 64-bit entries."""
    # bitcast_convert_type refuses booleans.
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)

    bits = min(leaf.dtype.itemsize * 8, 32)
    return jax.lax.bitcast_convert_type(leaf, f"uint{bits}").astype(jnp.uint32)


def _sums(words: jax.Array) -> jax.Array:
    """The sums a and b over words, uint32 [2]."""
    strides = [math.prod(words.shape[axis + 1 :]) for axis in range(words.ndim)]

    # In an array of more than 2^32 words the places wrap around, as the sums do.
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, stride in enumerate(strides):
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(stride % 2**32)

    h = _mixed(place)
    total = functools.partial(jnp.sum, dtype=jnp.uint32)
    return jnp.stack([total(_mixed(words * (2 * h + 1))), total(_mixed(words + h))])


def _mixed(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
