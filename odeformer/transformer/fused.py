"""Attention and MLP from one norm and one input product: the same sum, from the same parameters."""

from typing import Any

import jax
import jax.numpy as jnp

from odeformer.transformer.heads import heads_of
from odeformer.transformer.norms import param_dtype
from odeformer.transformer.state import Context


def fused_outputs(
    field: Any, t: jax.Array, y_BND: jax.Array, context: Context | None
) -> dict[str, jax.Array]:
    """Returns the outputs of attention and MLP by name, [B, N, D] each.

    Args:
      field: a bound `TransformerField` of these two terms.
      t: the depth-time.
      y_BND: the state.
      context: of the tokens.
    """
    # The norms' scales and biases are in the kernel: one bare norm serves both terms.
    kernel, bias = _folded_input(field, t)
    x_BND = field.bare(y_BND).astype(field.dtype)
    z = x_BND @ kernel.astype(field.dtype) + bias.astype(field.dtype)[None, None]

    heads, _, size = heads_of(field)
    qkv, hidden = jnp.split(z, [3 * heads * size], axis=-1)
    qkv_BN3HK = qkv.reshape(*qkv.shape[:-1], 3, heads, size)
    return {
        "attention": field.attention_layer.mix(qkv_BN3HK, context),
        "mlp": field.mlp_layer.activate(hidden),
    }


def _folded_input(field: Any, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Kernel [D, 3 H K + M] and bias [3 H K + M] that act on the bare norm of the state."""
    # Folded in float32 or above, whatever the parameters were cast to.
    exact = param_dtype(field.dtype)
    kernels, biases = [], []
    for norm, dense in (
        (field.attention_norm, field.attention_layer.qkv),
        (field.mlp_norm, field.mlp_layer.up),
    ):
        affine, product = norm.variables["params"], dense.variables["params"]
        scale, shift = affine["scale"].astype(exact), affine["bias"].astype(exact)
        kernel, bias = product["kernel"].astype(exact), product["bias"].astype(exact)
        kernel, bias = kernel.reshape(field.width, -1), bias.reshape(-1)

        # (scale x + shift) K + b = x (scale K) + (shift K + b); the time adds to the shift.
        kernels.append(scale[:, None] * kernel)
        biases.append(field.timed(t, shift) @ kernel + bias)

    return jnp.concatenate(kernels, axis=1), jnp.concatenate(biases)
