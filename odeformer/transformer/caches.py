"""Cached decoding: what a term keeps of the tokens that it has read.

Arrays carry their axes in their names: G groups, E evaluations of the term per step, B batch, C new
tokens of a chunk, S places of a cache, D width, H heads, K head size.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from odeformer.transformer.attention import Attention, KeyValues
from odeformer.transformer.convolution import Convolution
from odeformer.transformer.heads import heads_of
from odeformer.transformer.norms import param_dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cached:
    """How a causal term reads new tokens, with a cache of what it keeps of earlier ones.

    Attributes:
      init: (config, batch, places) -> cache of one evaluation that has read nothing, a pytree of
        arrays [B, ...]; there will be at most `places` tokens.
      extend: (layer, x_BCD, cache, filled_B, rotation) -> (out_BCD, new) of C new tokens, which
        follow the first filled_B ones; `new` is a pytree of arrays [B, ...] for `write`.
      write: (cache, new, filled_B, lengths_B) -> cache with the first lengths_B of the C tokens;
        arrays of cache and new have the axes [G, steps, E] in front here.
    """

    init: Callable[[Any, int, int], Any]
    extend: Callable[..., tuple[jax.Array, Any]]
    write: Callable[[Any, Any, jax.Array, jax.Array], Any]


class KeyCache(NamedTuple):
    """What attention keeps.

    Attributes:
      k: keys, [B, S, H, K] of the matrix products' dtype; H are the heads of keys and values.
      v: values, as the keys.
      sums: the sums of all values so far, [B, H, K] float32 or float64, where it is centred.
    """

    k: jax.Array
    v: jax.Array
    sums: jax.Array | None = None


def _init_keys(config: Any, batch: int, places: int) -> KeyCache:
    _, keys, size = heads_of(config)
    k, v = (jnp.zeros((batch, places, keys, size), config.dtype) for _ in range(2))
    sums = jnp.zeros((batch, keys, size), param_dtype(config.dtype)) if config.centre else None
    return KeyCache(k, v, sums)


def _extend_keys(
    layer: Attention,
    x_BCD: jax.Array,
    cache: KeyCache,
    filled_B: jax.Array,
    rotation: jax.Array | None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return layer.extend(x_BCD, KeyValues(cache.k, cache.v, filled_B, cache.sums), rotation)


def _write_keys(
    cache: KeyCache,
    new: tuple[jax.Array, jax.Array],
    filled_B: jax.Array,
    lengths_B: jax.Array,
) -> KeyCache:
    k, v = new
    places = jnp.arange(v.shape[4], dtype=jnp.int32)[None]

    # Padding is written after the first `filled` places: nothing sees it until tokens overwrite it.
    samples_B1, places_BC = jnp.arange(len(filled_B))[:, None], filled_B[:, None] + places

    def write(cached: jax.Array, new: jax.Array) -> jax.Array:
        at = cached.at[:, :, :, samples_B1, places_BC]
        return at.set(new, mode="drop", unique_indices=True)

    sums = cache.sums
    if sums is not None:
        real_BC11 = (places < lengths_B[:, None])[..., None, None]
        added = jnp.where(jnp.expand_dims(real_BC11, (0, 1, 2)), v.astype(sums.dtype), 0)
        sums += added.sum(axis=4)

    return KeyCache(write(cache.k, k), write(cache.v, v), sums)


# Keys and values of attention.
KEYS = Cached(init=_init_keys, extend=_extend_keys, write=_write_keys)


def _init_tail(config: Any, batch: int, places: int) -> jax.Array:
    # The product's dtype loses nothing: the inputs are cast to it anyway.
    return jnp.zeros((batch, 2, config.width), config.dtype)


def _extend_tail(
    layer: Convolution,
    x_BCD: jax.Array,
    tail_B2D: jax.Array,
    filled_B: jax.Array,
    rotation: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    return layer.extend(x_BCD, tail_B2D)


def _write_tail(
    tail: jax.Array, inputs: jax.Array, filled_B: jax.Array, lengths_B: jax.Array
) -> jax.Array:
    # Of two earlier inputs and C new ones, of which the first lengths_B count: the last two.
    last_B2 = lengths_B[:, None] + jnp.arange(2, dtype=jnp.int32)[None]
    places = jnp.expand_dims(last_B2, (0, 1, 2, 5))
    return jnp.take_along_axis(inputs, places, axis=4).astype(tail.dtype)


# The last two inputs of a causal convolution.
TAIL = Cached(init=_init_tail, extend=_extend_tail, write=_write_tail)
