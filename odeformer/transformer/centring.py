"""Means of values over the tokens that a token sees: what centred attention subtracts.

Arrays carry their axes in their names: B batch, N tokens, C new tokens of a chunk, H heads, K head
size. No array here has an axis N twice, and nothing is a matrix product.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from odeformer.transformer.norms import param_dtype


def subtract_means(mixed_BNHK: jax.Array, means_BNHK: jax.Array, centre: float) -> jax.Array:
    """Returns what attention mixed, less `centre` times the means, in its own dtype.

    The means may be of fewer heads, each that of successive heads which share its values.
    """
    shared = mixed_BNHK.shape[2] // means_BNHK.shape[2]
    means_BNHK = means_BNHK if shared == 1 else jnp.repeat(means_BNHK, shared, axis=2)

    # A numpy float64 is no weak number to JAX, and would widen the product.
    centred_BNHK = mixed_BNHK.astype(means_BNHK.dtype) - float(centre) * means_BNHK
    return centred_BNHK.astype(mixed_BNHK.dtype)


def visible_means(
    v_BNHK: jax.Array, segments_BN: jax.Array | None = None, causal: bool = False
) -> jax.Array:
    """Returns the mean of the values that each token sees.

        m_i = sum_j [i sees j] v_j / sum_j [i sees j]

    Args:
      v_BNHK: values, [B, N, H, K].
      segments_BN: int [B, N]; a token sees only tokens of its own number, which may lie anywhere.
        None: each token sees all others.
      causal: whether a token sees only itself and those before it.

    Returns:
      [B, N, H, K], or [B, 1, H, K] where all tokens see the same: float32, float64 of float64.
    """
    v_BNHK = v_BNHK.astype(param_dtype(v_BNHK.dtype))
    if segments_BN is not None:
        return _means_in_segments(v_BNHK, segments_BN, causal)

    if not causal:
        return v_BNHK.mean(axis=1, keepdims=True)

    return jnp.cumsum(v_BNHK, axis=1) / _numbers(v_BNHK)


def means_after(v_BCHK: jax.Array, sums_BHK: jax.Array, filled_B: jax.Array) -> jax.Array:
    """Returns the mean of the values up to each of C new tokens, which follow earlier ones.

    Args:
      v_BCHK: values of the new tokens, [B, C, H, K].
      sums_BHK: the sum of the earlier tokens' values, [B, H, K] float32 or float64.
      filled_B: how many earlier tokens there are, int [B].

    Returns:
      [B, C, H, K] of the sums' dtype.
    """
    v_BCHK = v_BCHK.astype(sums_BHK.dtype)
    numbers_BC11 = filled_B.astype(v_BCHK.dtype)[:, None, None, None] + _numbers(v_BCHK)
    return (sums_BHK[:, None] + jnp.cumsum(v_BCHK, axis=1)) / numbers_BC11


def _numbers(x_BNHK: jax.Array) -> jax.Array:
    """1 to N, [1, N, 1, 1]."""
    return jnp.arange(1, x_BNHK.shape[1] + 1, dtype=x_BNHK.dtype)[None, :, None, None]


def _means_in_segments(v_BNHK: jax.Array, segments_BN: jax.Array, causal: bool) -> jax.Array:
    # Sorted, the tokens of a segment are neighbours, in their order.
    order_BN = jnp.argsort(segments_BN, axis=1)
    sorted_BN = jnp.take_along_axis(segments_BN, order_BN, axis=1)

    sums_BNHK = _sums_in_segments(_take(v_BNHK, order_BN), sorted_BN, causal)
    counts_BN11 = _sums_in_segments(jnp.ones_like(v_BNHK[..., :1, :1]), sorted_BN, causal)
    return _take(sums_BNHK / counts_BN11, jnp.argsort(order_BN, axis=1))


def _sums_in_segments(x_BNHK: jax.Array, sorted_BN: jax.Array, causal: bool) -> jax.Array:
    """Sums over the visible tokens of sorted segments.

    In blocks of the root of N tokens: inside of each block, and from block to block. Terms are left
    out, and not subtracted from a sum over all tokens: nothing of a segment reaches another one,
    not even by rounding, and the gradients between them are exactly 0. (An associative scan does
    the same, and compiled longer.)
    """
    batch, tokens, *rest = x_BNHK.shape
    size = math.isqrt(tokens - 1) + 1
    blocks = -(-tokens // size)

    # Filled up by zeros, of the last segment.
    fill = (0, blocks * size - tokens)
    x_BNHK = jnp.pad(x_BNHK, ((0, 0), fill, (0, 0), (0, 0)))
    sorted_BN = jnp.pad(sorted_BN, ((0, 0), fill), mode="edge")

    x = x_BNHK.reshape(batch, blocks, size, *rest)
    segments = sorted_BN.reshape(batch, blocks, size)
    visible = segments[..., :, None] == segments[..., None, :]
    if causal:
        visible &= np.tri(size, dtype=bool)[None, None]
    sums = _sum_where(visible, x)

    # What continues from one block to a later one fills all between them, as segments are sorted.
    first, last, earlier = segments[..., 0], segments[..., -1], np.tri(blocks, k=-1, dtype=bool)
    for source, target, order in ((last, first, earlier), (first, last, earlier.T)):
        continued = (target[:, :, None] == source[:, None]) & order[None]
        ends = _sum_where(segments[:, :, None] == source[..., None, None], x)
        carried = _sum_where(continued[:, None], ends.swapaxes(1, 2)).swapaxes(1, 2)
        sums += jnp.where((segments == target[..., None])[..., None, None], carried, 0)
        if causal:
            break

    return sums.reshape(x_BNHK.shape)[:, :tokens]


def _sum_where(visible: jax.Array, x: jax.Array) -> jax.Array:
    """sum_j [i sees j] x_j in each block: bool [B, G, I, J], [B, G, J, H, K] -> [B, G, I, H, K]."""
    return jnp.where(visible[..., None, None], x[:, :, None], 0).sum(axis=3)


def _take(x_BNHK: jax.Array, order_BN: jax.Array) -> jax.Array:
    indices = order_BN[..., None, None]
    return jnp.take_along_axis(x_BNHK, indices, axis=1, mode="promise_in_bounds")
