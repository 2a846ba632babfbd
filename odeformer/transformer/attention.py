"""Multi-head attention: which tokens see which, heads that share keys, cached keys and values.

Arrays carry their axes in their names: B batch, N tokens, C new tokens of a chunk, S places of a
cache, D width, H heads, K head size. Keys and values may have fewer heads.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from odeformer.errors import check_finite
from odeformer.transformer.centring import means_after, subtract_means, visible_means
from odeformer.transformer.checks import check_attention, check_backend
from odeformer.transformer.heads import Heads, as_heads, as_rows, heads_of, mask_of_rows
from odeformer.transformer.layers import kernel_init
from odeformer.transformer.mesh import constrain
from odeformer.transformer.norms import EPSILON, Dtype, make_norm, param_dtype
from odeformer.transformer.rotary import rotate
from odeformer.transformer.state import Context


class KeyValues(NamedTuple):
    """Keys and values of earlier tokens.

    Attributes:
      k: keys, normed and rotated where the model does so, [B, S, H, K]; of the heads of keys.
      v: values, as the keys.
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
      width: size of the state's last axis; heads divide it, unless head_size is given.
      dtype: dtype of the matrix products.
      implementation: 'auto', 'xla' or 'cudnn', of `jax.nn.dot_product_attention`.
      causal: whether a token sees only itself and those before it.
      centre: how much of the mean of the visible values is subtracted; 1: the rows of the weights
        sum to 0.
      kv_heads: heads of keys and values, each shared by heads / kv_heads successive heads; None: as
        many as heads.
      head_size: K; None: width / heads.
      qk_norm: whether queries and keys are normed, each head by itself, before they are rotated.
      norm: 'layer' or 'rms', of these norms.
      norm_epsilon: what they add to the variance.
      qkv_bias: whether the products of queries, keys and values have biases.
      out_bias: whether the output's product has one.

    Raises:
      ValueError: heads that do not divide the width, or that kv_heads do not divide, a centre that
        is not finite, or an implementation that does not exist, does not take the dtype, or (when
        applied) is not available on the device.

    Source: Vaswani et al., 'Attention Is All You Need', 2017, arXiv 1706.03762; Ali et al.,
    'Centered Self-Attention Layers', 2023, arXiv 2306.01610 (centre 1); Ainslie et al., 'GQA',
    2023, arXiv 2305.13245 (kv_heads); Henry et al., 'Query-Key Normalization for Transformers',
    2020, arXiv 2010.04245.
    """

    heads: int
    width: int
    dtype: Dtype = jnp.float32
    implementation: str = "auto"
    causal: bool = False
    centre: float = 0.0
    kv_heads: int | None = None
    head_size: int | None = None
    qk_norm: bool = False
    norm: str = "layer"
    norm_epsilon: float = EPSILON
    qkv_bias: bool = True
    out_bias: bool = True

    def __post_init__(self):
        check_attention(self, self.implementation)
        check_finite(centre=self.centre)
        super().__post_init__()

    def setup(self):
        # Not in __post_init__: a config for a GPU can be made and read on any machine.
        check_backend(self.implementation)

        heads = self._sizes
        options = dict(
            dtype=self.dtype, param_dtype=param_dtype(self.dtype), kernel_init=kernel_init
        )
        inputs = dict(options, use_bias=self.qkv_bias)
        if heads.shared:
            self.q = nn.DenseGeneral((heads.queries, heads.size), **inputs)
            self.kv = nn.DenseGeneral((2, heads.keys, heads.size), **inputs)
        else:
            self.qkv = nn.DenseGeneral((3, heads.queries, heads.size), **inputs)

        if self.qk_norm:
            self.q_norm = make_norm(self.norm, self.dtype, self.norm_epsilon)
            self.k_norm = make_norm(self.norm, self.dtype, self.norm_epsilon)
        self.out = nn.DenseGeneral(self.width, axis=(-2, -1), use_bias=self.out_bias, **options)

    @property
    def _sizes(self) -> Heads:
        return heads_of(self)

    def __call__(self, x_BND: jax.Array, context: Context | None = None) -> jax.Array:
        """Attends among the N tokens: [B, N, D] -> [B, N, D] in the layer's dtype."""
        if not self._sizes.shared:
            return self.mix(self.qkv(x_BND), context)

        q_BNHK = constrain(self.q(x_BND), ("batch", "tokens", "heads", None))
        kv_BN2HK = constrain(self.kv(x_BND), ("batch", "tokens", None, "heads", None))
        return self._among(q_BNHK, kv_BN2HK[:, :, 0], kv_BN2HK[:, :, 1], context)

    def mix(self, qkv_BN3HK: jax.Array, context: Context | None = None) -> jax.Array:
        """Attention after the input projection: [B, N, 3, H, K] -> [B, N, D]."""
        qkv_BN3HK = constrain(qkv_BN3HK, ("batch", "tokens", None, "heads", None))
        q_BNHK, k_BNHK, v_BNHK = (qkv_BN3HK[:, :, i] for i in range(3))
        return self._among(q_BNHK, k_BNHK, v_BNHK, context)

    def _among(
        self, q_BNHK: jax.Array, k_BNHK: jax.Array, v_BNHK: jax.Array, context: Context | None
    ) -> jax.Array:
        """Attention among the N tokens: their queries, keys and values -> [B, N, D]."""
        context = context or Context()
        q_BNHK, k_BNHK = self._turn(q_BNHK, k_BNHK, context.rotation)

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
          rotation: of the new tokens' positions, see `rotary.rotation`, where these are rotary.

        Returns:
          [B, C, D] in the layer's dtype, and the new keys and values, [B, C, H, K] each, of the
          heads of keys.
        """
        q_BCHK, k_BCHK, v_BCHK = self._inputs(x_BCD)
        q_BCHK, k_BCHK = self._turn(q_BCHK, k_BCHK, rotation)
        heads, keys, _ = self._sizes
        new, places = x_BCD.shape[1], seen.k.shape[1]

        # Heads that share keys are further rows: a cache is never copied for each of them.
        rows = as_rows(q_BCHK, keys)

        # As in a pass over all tokens, scores and softmax are float32 whatever the products are.
        exact = param_dtype(q_BCHK.dtype)

        def scores(k: jax.Array, visible: jax.Array) -> jax.Array:
            product = jnp.einsum("BCHK,BSHK->BHCS", rows, k, preferred_element_type=exact)
            return jnp.where(visible, product / math.sqrt(q_BCHK.shape[-1]), -jnp.inf)

        before = jnp.arange(places)[None, None, None] < seen.filled[:, None, None, None]
        causal = mask_of_rows(jnp.tril(jnp.ones((new, new), bool)), heads, keys)
        both = jnp.concatenate([scores(seen.k, before), scores(k_BCHK, causal)], axis=-1)
        weights = jax.nn.softmax(both).astype(q_BCHK.dtype)

        # Two products rather than one over joined values, which would copy the cache.
        old, own = weights[..., :places], weights[..., places:]
        mixed_BCHK = jnp.einsum("BHCS,BSHK->BCHK", old, seen.v)
        mixed_BCHK += jnp.einsum("BHCS,BSHK->BCHK", own, v_BCHK)
        mixed_BCHK = as_heads(mixed_BCHK, heads)

        if self.centre:
            assert seen.sums is not None
            means_BCHK = means_after(v_BCHK, seen.sums, seen.filled)
            mixed_BCHK = subtract_means(mixed_BCHK, means_BCHK, self.centre)

        return self.out(mixed_BCHK), (k_BCHK, v_BCHK)

    def _inputs(self, x_BCD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values."""
        if self._sizes.shared:
            kv_BC2HK = self.kv(x_BCD)
            return self.q(x_BCD), kv_BC2HK[:, :, 0], kv_BC2HK[:, :, 1]

        qkv_BC3HK = self.qkv(x_BCD)
        return qkv_BC3HK[:, :, 0], qkv_BC3HK[:, :, 1], qkv_BC3HK[:, :, 2]

    def _turn(
        self, q_BNHK: jax.Array, k_BNHK: jax.Array, rotation: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Queries and keys, normed and rotated where the model does so."""
        if self.qk_norm:
            exact = param_dtype(q_BNHK.dtype)
            q_BNHK = self.q_norm(q_BNHK.astype(exact)).astype(q_BNHK.dtype)
            k_BNHK = self.k_norm(k_BNHK.astype(exact)).astype(k_BNHK.dtype)
        if rotation is not None:
            q_BNHK, k_BNHK = rotate(q_BNHK, rotation), rotate(k_BNHK, rotation)

        return q_BNHK, k_BNHK


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
    exact, heads, keys = param_dtype(q_BNHK.dtype), q_BNHK.shape[2], k_BNHK.shape[2]
    rows = as_rows(q_BNHK, keys)
    scores = jnp.einsum("BQHK,BNHK->BHQN", rows.astype(exact), k_BNHK.astype(exact))
    scores /= math.sqrt(q_BNHK.shape[-1])

    visible = jnp.ones((1, 1, q_BNHK.shape[1], k_BNHK.shape[1]), bool)
    visible = jnp.tril(visible) if causal else visible
    visible = visible if mask_BHNN is None else visible & mask_BHNN
    visible = mask_of_rows(visible, heads, keys)

    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf)).astype(v_BNHK.dtype)
    return as_heads(jnp.einsum("BHQN,BNHK->BQHK", weights, v_BNHK), heads)
