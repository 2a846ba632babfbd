"""Rotary positions: how far queries and keys are turned, also in longer texts than in training.

Arrays carry their axes in their names: B batch, N tokens, H heads, K head size.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from odeformer.transformer.norms import Dtype

SCALINGS = ("none", "linear", "llama3")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotary:
    """How rotary positions turn.

    Attributes:
      base: the longest wavelength over 2 pi, in tokens.
      fraction: of a head's entries that are turned, its first ones; rounded down to whole entries.
      scaling: 'none'; 'linear', all angles divided by the factor; or 'llama3', those of waves that
        are long against the texts of training.
      factor: how many times longer texts are than those of training.
      low_turns: waves of fewer turns in a text of training are scaled as a whole ('llama3').
      high_turns: waves of more turns are not scaled; between the two, in part.
      length: of the texts of training, in tokens.
    """

    base: float = 10_000.0
    fraction: float = 1.0
    scaling: str = "none"
    factor: float = 1.0
    low_turns: float = 1.0
    high_turns: float = 4.0
    length: int = 8192

    def turned(self, size: int) -> int:
        """How many entries of a head of that size are turned."""
        return int(size * self.fraction)


def rotation(
    positions: jax.Array, size: int, dtype: Dtype = jnp.float32, rotary: Rotary | None = None
) -> jax.Array:
    """Returns cosines and sines of rotary positions.

        angle_i = position / base^(2 i / R),    i < R / 2

    Args:
      positions: int [B, N].
      size: K, the size of a head.
      dtype: of the result, float32 or float64.
      rotary: base, scaling and which part R of the head is turned, an even number; None: all of it,
        with base 10000.

    Returns:
      [B, N, 2, R / 2].

    Source: Su et al., 'RoFormer: Enhanced Transformer with Rotary Position Embedding', 2021, arXiv
    2104.09864.
    """
    rotary = rotary or Rotary()
    size = rotary.turned(size)
    waves = jnp.asarray(rotary.base, dtype) ** (-jnp.arange(0, size, 2, dtype=dtype) / size)
    angles = positions[..., None].astype(dtype) * _scaled(waves, rotary)[None, None]
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-2)


def _scaled(waves: jax.Array, rotary: Rotary) -> jax.Array:
    """Angles per token, scaled to longer texts.

    Sources: Chen et al. 2023, arXiv 2306.15595 (linear); Dubey et al., 'The Llama 3 Herd of
    Models', 2024, arXiv 2407.21783 (llama3).
    """
    if rotary.scaling == "none":
        return waves

    slow = waves / rotary.factor
    if rotary.scaling == "linear":
        return slow

    turns = waves * (rotary.length / (2 * math.pi))
    kept = (turns - rotary.low_turns) / (rotary.high_turns - rotary.low_turns)
    kept = jnp.clip(kept, 0.0, 1.0)
    return kept * waves + (1 - kept) * slow


def rotate(x_BNHK: jax.Array, rotation: jax.Array) -> jax.Array:
    """Rotates the pairs (x_i, x_{i + R/2}) of each head by their position's angles, i < R / 2.

    Args:
      x_BNHK: queries or keys, [B, N, H, K].
      rotation: [B, N, 2, R / 2]; the entries after the first R stay as they are.

    Returns:
      [B, N, H, K] of x's dtype, computed in the rotation's.
    """
    turned = 2 * rotation.shape[-1]
    if turned < x_BNHK.shape[-1]:
        rotated = rotate(x_BNHK[..., :turned], rotation)
        return jnp.concatenate([rotated, x_BNHK[..., turned:]], axis=-1)

    cos, sin = rotation[:, :, None, 0], rotation[:, :, None, 1]
    first, second = jnp.split(x_BNHK.astype(rotation.dtype), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BNHK.dtype)
