"""Multi-head attention: which tokens see which, rotary positions, keys and values that are kept.

Arrays carry their axes in their names: B batch, N tokens, C new tokens of a chunk, S places of a
cache, D width, H heads, K head size.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from odeformer.errors import check_positive_int, unknown
from odeformer.transformer.layers import Dtype, kernel_init, param_dtype
from odeformer.transformer.sharding import constrain

ATTENTIONS = ("auto", "xla", "cudnn")
LONGEST_WAVE = 10_000.0  # of rotary positions, over 2 pi


class Layout(NamedTuple):
    """How the tokens of a batch lie in their sequences, and these in it; None plays no part.

    Attributes:
      segments: int [B, N]; a token sees those of its own number alone. Padding has a number too,
        by custom 0.
      rotation: [B, N, 2, K / 2], cosines and sines of each position; see `rotation`.
      samples: int [B], each sample's number, which its dropout masks follow from.
    """

    segments: jax.Array | None = None
    rotation: jax.Array | None = None
    samples: jax.Array | None = None


class KeyValues(NamedTuple):
    """Keys and values of tokens that were seen before.

    Attributes:
      k: keys, rotated where positions are rotary, [B, S, H, K].
      v: values, [B, S, H, K].
      filled: int [B], how many of the S places hold a token, from the first on.
    """

    k: jax.Array
    v: jax.Array
    filled: jax.Array


class Attention(nn.Module):
    """Multi-head self-attention; softmax in float32.

    Attributes:
      heads: number of heads.
      width: size of the state's last axis; heads divide it.
      dtype: dtype of the matrix products.
      implementation: 'auto', 'xla' or 'cudnn', of `jax.nn.dot_product_attention`.
      causal: whether a token sees itself and those before it alone.

    Raises:
      ValueError: heads that do not divide the width, or an implementation that is not known, that
        does not take the dtype, or (when applied) that the device does not have.

    Source: Vaswani et al., 'Attention Is All You Need', 2017, arXiv 1706.03762.
    """

    heads: int
    width: int
    dtype: Dtype = jnp.float32
    implementation: str = "auto"
    causal: bool = False

    def __post_init__(self):
        check_attention(self.width, self.heads, self.dtype, self.implementation)
        super().__post_init__()

    def setup(self):
        check_backend(self.implementation)
        size = self.width // self.heads
        options = dict(
            dtype=self.dtype, param_dtype=param_dtype(self.dtype), kernel_init=kernel_init
        )
        self.qkv = nn.DenseGeneral((3, self.heads, size), **options)
        self.out = nn.DenseGeneral(self.width, axis=(-2, -1), **options)

    def __call__(self, x_BND: jax.Array, layout: Layout | None = None) -> jax.Array:
        """Attends among the N tokens: [B, N, D] -> [B, N, D] in the layer's dtype."""
        return self.mix(self.qkv(x_BND), layout)

    def mix(self, qkv_BN3HK: jax.Array, layout: Layout | None = None) -> jax.Array:
        """Attention behind the input projection: [B, N, 3, H, K] -> [B, N, D]."""
        layout = layout or Layout()
        qkv_BN3HK = constrain(qkv_BN3HK, "batch", "tokens", None, "heads", None)
        q_BNHK, k_BNHK, v_BNHK = _split(qkv_BN3HK, layout.rotation)
        mask_BHNN = None
        if layout.segments is not None:
            mask_BHNN = layout.segments[:, None, :, None] == layout.segments[:, None, None, :]
        implementation: Any = None if self.implementation == "auto" else self.implementation
        if _attends_by_itself(q_BNHK.dtype, self.implementation):
            mixed_BNHK = _attend(q_BNHK, k_BNHK, v_BNHK, mask_BHNN, self.causal)
        else:
            mixed_BNHK = jax.nn.dot_product_attention(
                q_BNHK,
                k_BNHK,
                v_BNHK,
                mask=mask_BHNN,
                is_causal=self.causal,
                implementation=implementation,
            )
        return self.out(mixed_BNHK)

    def extend(
        self, x_BCD: jax.Array, seen: KeyValues, rotation: jax.Array | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Attends from C new tokens to those seen before and, causally, among themselves.

        Args:
          x_BCD: the new tokens, [B, C, D].
          seen: keys and values of the tokens before them.
          rotation: of the new tokens' positions, [B, C, 2, K / 2], where positions are rotary.

        Returns:
          [B, C, D] in the layer's dtype, and the new keys and values, [B, C, H, K] each.
        """
        q_BCHK, k_BCHK, v_BCHK = _split(self.qkv(x_BCD), rotation)
        new, places = x_BCD.shape[1], seen.k.shape[1]
        exact = param_dtype(q_BCHK.dtype)

        def scores(k: jax.Array, visible: jax.Array) -> jax.Array:
            product = jnp.einsum("BCHK,BSHK->BHCS", q_BCHK, k, preferred_element_type=exact)
            return jnp.where(visible, product / math.sqrt(q_BCHK.shape[-1]), -jnp.inf)

        before = jnp.arange(places)[None, None, None] < seen.filled[:, None, None, None]
        among = jnp.tril(jnp.ones((new, new), bool))
        both = jnp.concatenate([scores(seen.k, before), scores(k_BCHK, among)], axis=-1)
        weights = jax.nn.softmax(both).astype(q_BCHK.dtype)
        old, own = weights[..., :places], weights[..., places:]
        mixed_BCHK = jnp.einsum("BHCS,BSHK->BCHK", old, seen.v)
        mixed_BCHK += jnp.einsum("BHCS,BSHK->BCHK", own, v_BCHK)
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
    """Turns the pairs (x_i, x_{i + K/2}) of each head by their position's angles.

    Args:
      x_BNHK: queries or keys, [B, N, H, K].
      rotation: [B, N, 2, K / 2].

    Returns:
      [B, N, H, K] of x's dtype, computed in the rotation's.
    """
    cos, sin = rotation[:, :, None, 0], rotation[:, :, None, 1]
    first, second = jnp.split(x_BNHK.astype(rotation.dtype), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BNHK.dtype)


def check_attention(width: int, heads: int, dtype: Dtype, implementation: str) -> None:
    """Raises ValueError where these do not make a multi-head attention; see `Attention`."""
    check_positive_int(width=width, heads=heads)
    if width % heads:
        divisors = [str(n) for n in range(1, 33) if width % n == 0]
        raise ValueError(
            f"heads={heads} does not divide width={width}: take heads from "
            f"{', '.join(divisors)}, or another width"
        )
    if implementation not in ATTENTIONS:
        raise unknown("attention", implementation, ATTENTIONS)
    if implementation == "cudnn" and jnp.dtype(dtype) != jnp.bfloat16:
        raise ValueError(
            f"attention 'cudnn' takes dtype 'bfloat16'; {jnp.dtype(dtype).name!r} was given: take "
            "that dtype, or attention 'auto' or 'xla'"
        )
    size = width // heads
    if implementation == "cudnn" and (size % 8 or size > 256):
        raise ValueError(
            "attention 'cudnn' takes heads whose size is a multiple of 8, at most 256; "
            f"width={width} over heads={heads} makes {size}: take other heads, or attention 'auto' "
            "or 'xla'"
        )


def check_backend(implementation: str) -> None:
    """Raises ValueError where JAX's default backend does not have the implementation."""
    if implementation == "cudnn" and jax.default_backend() != "gpu":
        raise ValueError(
            "attention 'cudnn' runs on NVIDIA GPUs, and JAX's default backend here is "
            f"{jax.default_backend()!r}: take attention 'auto' or 'xla'"
        )


def _split(
    qkv_BN3HK: jax.Array, rotation: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    q_BNHK, k_BNHK, v_BNHK = (qkv_BN3HK[:, :, i] for i in range(3))
    if rotation is not None:
        q_BNHK, k_BNHK = rotate(q_BNHK, rotation), rotate(k_BNHK, rotation)
    return q_BNHK, k_BNHK, v_BNHK


def _attends_by_itself(dtype: Dtype, implementation: str) -> bool:
    """Whether `jax.nn.dot_product_attention` does not serve.

    It takes float64's softmax in float32; and it promotes bfloat16 implicitly, in the lowering of
    its gradient too, where strict promotion makes JAX raise.
    """
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
