"""How attention divides into heads, and heads that share keys and values.

Arrays carry their axes in their names: B batch, N tokens, H heads, G heads that share keys and
values, K head size; the latter have H / G heads.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Heads(NamedTuple):
    """How attention divides into heads.

    Attributes:
      queries: H, the number of heads.
      keys: the number of heads of keys and values; it divides H.
      size: K, of each head.
    """

    queries: int
    keys: int
    size: int

    @property
    def shared(self) -> bool:
        """Whether heads share keys and values, whose products are then a kernel of their own."""
        return self.keys != self.queries


def heads_of(config: Any) -> Heads:
    """Returns the heads of a `FieldConfig`, or of what has its fields."""
    keys = config.heads if config.kv_heads is None else config.kv_heads
    size = config.width // config.heads if config.head_size is None else config.head_size
    return Heads(config.heads, keys, size)


def as_rows(x_BNHK: jax.Array, keys: int) -> jax.Array:
    """Queries of heads that share keys, as further rows: [B, N, H, K] -> [B, N G, H / G, K]."""
    batch, tokens, heads, size = x_BNHK.shape
    if heads == keys:
        return x_BNHK

    x = x_BNHK.reshape(batch, tokens, keys, heads // keys, size).swapaxes(2, 3)
    return x.reshape(batch, tokens * (heads // keys), keys, size)


def as_heads(x: jax.Array, heads: int) -> jax.Array:
    """The inverse of `as_rows`: [B, N G, H / G, K] -> [B, N, H, K]."""
    batch, rows, keys, size = x.shape
    if heads == keys:
        return x

    x = x.reshape(batch, rows * keys // heads, heads // keys, keys, size).swapaxes(2, 3)
    return x.reshape(batch, rows * keys // heads, heads, size)


def mask_of_rows(visible: jax.Array, heads: int, keys: int) -> jax.Array:
    """What each row of `as_rows` sees: [..., N, S] -> [..., N G, S]."""
    return visible if heads == keys else jnp.repeat(visible, heads // keys, axis=-2)
