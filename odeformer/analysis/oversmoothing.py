"""How alike the tokens of a state are.

Arrays carry their axes in their names: N tokens, D width; any axes may stand before them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from odeformer.analysis.checks import check_states


class Similarity(NamedTuple):
    """How alike the tokens of each state are; what `similarity` returns.

    Attributes:
      cosine: mean cosine between two different tokens, [...]; 1 where all point the same way.
      deviation: ||y - mean|| / ||y||, [...], the mean being that over the tokens; 0 where all
        tokens are the same, and 1 where they add up to nothing.
    """

    cosine: jax.Array
    deviation: jax.Array


def similarity(states: jax.Array, mask: jax.Array | None = None) -> Similarity:
    """Measures how alike the tokens of each state are, such as along depth.

        cosine = mean over i != j of <y_i, y_j> / (||y_i|| ||y_j||)
        deviation = ||y - mean_i y_i|| / ||y||

    A token that is 0 has cosine 0 with every other; a state that is 0 has deviation 0.

    Args:
      states: [..., N, D] of a floating dtype: of `trajectory`, [T, B, N, D], `Solution.ys` or a
        single state. N is 2 or more.
      mask: bool [..., N], True for a token and False for padding, which is left out; its axes are
        broadcast to those of the states: [B, N] serves all depths. A state has two tokens or more.

    Returns:
      A Similarity, its arrays [...] without N and D: [T, B] for states [T, B, N, D]; float32,
      float64 of float64.

    Raises:
      ValueError: states or a mask of another shape or dtype.

    Source: Ali et al., 'Centered Self-Attention Layers', 2023, arXiv 2306.01610, on oversmoothing.

    Examples:
      >>> import jax.numpy as jnp
      >>> found = similarity(jnp.array([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [-1.0, 0.0]]]))
      >>> found.cosine.tolist(), found.deviation.tolist()
      ([1.0, -1.0], [0.0, 1.0])
    """
    check_states(states, mask)
    y_ND = jnp.asarray(states)
    y_ND = y_ND.astype(jnp.promote_types(y_ND.dtype, jnp.float32))

    mask = jnp.ones(y_ND.shape[-2], bool) if mask is None else jnp.asarray(mask)
    kept_N1 = jnp.broadcast_to(mask, y_ND.shape[:-1])[..., None]
    y_ND, tokens = jnp.where(kept_N1, y_ND, 0), kept_N1.sum((-2, -1)).astype(y_ND.dtype)

    # sum over i != j of <u_i, u_j> = ||sum_i u_i||^2 - sum_i ||u_i||^2, without an [N, N] array.
    unit_ND = _over(y_ND, jnp.linalg.norm(y_ND, axis=-1, keepdims=True))
    pairs = (unit_ND.sum(-2) ** 2).sum(-1) - (unit_ND**2).sum((-2, -1))
    cosine = pairs / (tokens * (tokens - 1))

    mean_1D = y_ND.sum(-2, keepdims=True) / tokens[..., None, None]
    from_mean_ND = jnp.where(kept_N1, y_ND - mean_1D, 0)
    return Similarity(cosine, _over(_norm(from_mean_ND), _norm(y_ND)))


def _norm(y_ND: jax.Array) -> jax.Array:
    return jnp.sqrt((y_ND**2).sum((-2, -1)))


def _over(x: jax.Array, y: jax.Array) -> jax.Array:
    """x / y, and 0 where y is."""
    return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y))
