"""Multi-head attention: which tokens see which, rotary positions, cached keys and values.

Arrays carry their axes in their names: B batch, N tokens, C new tokens of a chunk, S places of a
cache, D width, H heads, K head size.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from odeformer.errors import check_finite
from odeformer.transformer.centring import means_after, subtract_means, visible_means
from odeformer.transformer.checks import check_attention, check_backend
from odeformer.transformer.context import Context
from odeformer.transformer.layers import Dtype, kernel_init, param_dtype
from odeformer.transformer.mesh import constrain

# The longest wavelength of rotary positions, over 2 pi.
LONGEST_WAVE = 10_000.0


class KeyValues(NamedTuple):
    """Keys and values of earlier tokens.

    Attributes:
      k: keys, rotated where positions are rotary, [B, S, H, K].
      v: values, [B, S, H, K].
      filled: int [B], how many of the S places hold a token; these come first.
      sums: the sum of these tokens' values, [B, H, K] float32 or float64, where attention is
        centred.
    """

    k: jax.Array
    v: jax.Array
    filled: jax.Array
    sums: jax.Array | None = None


class Attention(nn.Module):
    """Multi-head self-attention; softmax in float32.

        out(concat_h (A_h - centre C) V_h),    C_ij = [i sees j] / (number of tokens that i sees)

    Attributes:
      heads: number of heads.
      width: size of the state's last axis; heads divide it.
      dtype: dtype of the matrix products.
      implementation: 'auto', 'xla' or 'cudnn', of `jax.nn.dot_product_attention`.
      causal: whether a token sees only itself and those before it.
      centre: how much of the mean of the visible values is subtracted; 1: the rows of the weights
        sum to 0.

    Raises:
      ValueError: heads that do not divide the width, a centre that is not finite, or an
        implementation that does not exist, does not take the dtype, or (when applied) is not
        available on the device.

    Source: Vaswani et al., 'Attention Is All You Need', 2017, arXiv 1706.03762; Ali et al.,
    'Centered Self-Attention Layers', 2023, arXiv 2306.01610 (centre 1).
    """

    heads: int
    width: int
    dtype: Dtype = jnp.float32
    implementation: str = "auto"
    causal: bool = False
    centre: float = 0.0

    def __post_init__(self):
        check_attention(self.width, self.heads, self.dtype, self.implementation)
        check_finite(centre=self.centre)
        super().__post_init__()

    def setup(self):
        # Not in __post_init__: a config for a GPU can be made and read on any machine.
        check_backend(self.implementation)

        size = self.width // self.heads
        options = dict(
            dtype=self.dtype, param_dtype=param_dtype(self.dtype), kernel_init=kernel_init
        )
        self.qkv = nn.DenseGeneral((3, self.heads, size), **options)
        self.out = nn.DenseGeneral(self.width, axis=(-2, -1), **options)

    def __call__(self, x_BND: jax.Array, context: Context | None = None) -> jax.Array:
        """Attends among the N tokens: [B, N, D] -> [B, N, D] in the layer's dtype."""
        return self.mix(self.qkv(x_BND), context)

    def mix(self, qkv_BN3HK: jax.Array, context: Context | None = None) -> jax.Array:
        """Attention after the input projection: [B, N, 3, H, K] -> [B, N, D]."""
        context = context or Context()
        qkv_BN3HK = constrain(qkv_BN3HK, ("batch", "tokens", None, "heads", None))
        q_BNHK, k_BNHK, v_BNHK = _split(qkv_BN3HK, context.rotation)

        mask_BHNN = None
        if context.segments is not None:
            mask_BHNN = context.segments[:, None, :, None] == context.segments[:, None, None, :]

        if _exceeds_jax(q_BNHK.dtype, self.implementation):
            mixed_BNHK = _attend(q_BNHK, k_BNHK, v_BNHK, mask_BHNN, self.causal)
        else:
            implementation: Any = None if self.implementation == "auto" else self.implementation
            mixed_BNHK = jax.nn.dot_product_attention(
                q_BNHK,
                k_BNHK,
                v_BNHK,
                mask=mask_BHNN,
                is_causal=self.causal,
                implementation=implementation,
            )

        # Outside of the kernels, none of which knows it.
        if self.centre:
            means_BNHK = visible_means(v_BNHK, context.segments, self.causal)
            mixed_BNHK = subtract_means(mixed_BNHK, means_BNHK, self.centre)

        return self.out(mixed_BNHK)

    def extend(
        self, x_BCD: jax.Array, seen: KeyValues, rotation: jax.Array | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Attends from C new tokens to earlier ones and, causally, among themselves.

        Args:
          x_BCD: the new tokens, [B, C, D].
          seen: keys and values of the earlier tokens.
          rotation: of the new tokens' positions, [B, C, 2, K / 2], where positions are rotary.

        Returns:
          [B, C, D] in the layer's dtype, and the new keys and values, [B, C, H, K] each.
        """
        q_BCHK, k_BCHK, v_BCHK = _split(self.qkv(x_BCD), rotation)
        new, places = x_BCD.shape[1], seen.k.shape[1]

        # As in a pass over all tokens, scores and softmax are float32 whatever the products are.
        exact = param_dtype(q_BCHK.dtype)

        def scores(k: jax.Array, visible: jax.Array) -> jax.Array:
            product = jnp.einsum("BCHK,BSHK->BHCS", q_BCHK, k, preferred_element_type=exact)
            return jnp.where(visible, product / math.sqrt(q_BCHK.shape[-1]), -jnp.inf)

        before = jnp.arange(places)[None, None, None] < seen.filled[:, None, None, None]
        causal = jnp.tril(jnp.ones((new, new), bool))
        both = jnp.concatenate([scores(seen.k, before), scores(k_BCHK, causal)], axis=-1)
        weights = jax.nn.softmax(both).astype(q_BCHK.dtype)

        # Two products rather than one over joined values, which would copy the cache.
        old, own = weights[..., :places], weights[..., places:]
        mixed_BCHK = jnp.einsum("BHCS,BSHK->BCHK", old, seen.v)
        mixed_BCHK += jnp.einsum("BHCS,BSHK->BCHK", own, v_BCHK)

        if self.centre:
            assert seen.sums is not None
            means_BCHK = means_after(v_BCHK, seen.sums, seen.filled)
            mixed_BCHK = subtract_means(mixed_BCHK, means_BCHK, self.centre)

        return self.out(mixed_BCHK), (k_BCHK, v_BCHK)


def rotation(positions: jax.Array, size: int, dtype: Dtype = jnp.float32) -> jax.Array:
    """Returns cosines and sines of rotary positions.

        angle_i = position / 10000^(2 i / K),    i < K / 2

    Args:
      positions: int [B, N].
      size: K, the size of a head; even.
      dtype: of the result, float32 or float64.

    Returns:
      [B, N, 2, K / 2].

    Source: Su et al., 'RoFormer: Enhanced Transformer with Rotary Position Embedding', 2021, arXiv
    2104.09864.
    """
    waves = jnp.asarray(LONGEST_WAVE, dtype) ** (-jnp.arange(0, size, 2, dtype=dtype) / size)
    angles = positions[..., None].astype(dtype) * waves[None, None]
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-2)


def rotate(x_BNHK: jax.Array, rotation: jax.Array) -> jax.Array:
    """Rotates the pairs (x_i, x_{i + K/2}) of each head by their position's angles.

    Args:
      x_BNHK: queries or keys, [B, N, H, K].
      rotation: [B, N, 2, K / 2].

    Returns:
      [B, N, H, K] of x's dtype, computed in the rotation's.
    """
    cos, sin = rotation[:, :, None, 0], rotation[:, :, None, 1]
    first, second = jnp.split(x_BNHK.astype(rotation.dtype), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BNHK.dtype)


def _split(
    qkv_BN3HK: jax.Array, rotation: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    q_BNHK, k_BNHK, v_BNHK = (qkv_BN3HK[:, :, i] for i in range(3))
    if rotation is not None:
        q_BNHK, k_BNHK = rotate(q_BNHK, rotation), rotate(k_BNHK, rotation)
    return q_BNHK, k_BNHK, v_BNHK


def _exceeds_jax(dtype: Dtype, implementation: str) -> bool:
    """Whether the dtype asks more than `jax.nn.dot_product_attention` offers."""
    # Its softmax of float64 is float32's. It promotes bfloat16 implicitly, in the lowering of its
    # gradient too, where strict promotion makes JAX raise.
    strict = jax.config.jax_numpy_dtype_promotion == "strict"  # pyright: ignore
    return dtype == jnp.float64 or (strict and dtype == jnp.bfloat16 and implementation != "cudnn")


def _attend(
    q_BNHK: jax.Array,
    k_BNHK: jax.Array,
    v_BNHK: jax.Array,
    mask_BHNN: jax.Array | None,
    causal: bool,
) -> jax.Array:
    """Attention with its scores and softmax in float32, or in float64."""
    exact = param_dtype(q_BNHK.dtype)
    scores = jnp.einsum("BQHK,BNHK->BHQN", q_BNHK.astype(exact), k_BNHK.astype(exact))
    scores /= math.sqrt(q_BNHK.shape[-1])

    visible = jnp.ones((1, 1, *scores.shape[-2:]), bool)
    visible = jnp.tril(visible) if causal else visible
    visible = visible if mask_BHNN is None else visible & mask_BHNN

    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf)).astype(v_BNHK.dtype)
    return jnp.einsum("BHQN,BNHK->BQHK", weights, v_BNHK)
