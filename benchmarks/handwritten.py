"""Transformer stacks without a solver, written by hand over the same parameters: the yardstick.

Each takes the parameters of an ODEStack (stacked over groups) and a state [B, N, D], and scans
over the layers or, where they share their parameters, over the steps; each one is recomputed in
the backward pass. `vit` is a whole vision transformer around such a stack. No diffrax, no flax.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Params = Any


def norm(p: Params, x: jax.Array) -> jax.Array:
    """Layer norm with scale and bias."""
    mean = x.mean(-1, keepdims=True)
    variance = jnp.maximum((x * x).mean(-1, keepdims=True) - mean * mean, 0.0)
    return (x - mean) * (jax.lax.rsqrt(variance + 1e-6) * p["scale"]) + p["bias"]


def attention(p: Params, y: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """attention(norm(y)), [B, N, D] -> [B, N, D], its products in dtype."""
    x, layer = norm(p["attention_norm"], y).astype(dtype), _cast(p["attention_layer"], dtype)
    qkv = jnp.einsum("bnd,dchk->bnchk", x, layer["qkv"]["kernel"]) + layer["qkv"]["bias"]
    mixed = jax.nn.dot_product_attention(*(qkv[:, :, i] for i in range(3)))
    out = jnp.einsum("bnhk,hkd->bnd", mixed, layer["out"]["kernel"]) + layer["out"]["bias"]
    return out.astype(y.dtype)


def mlp(p: Params, y: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """mlp(norm(y)), [B, N, D] -> [B, N, D], its products in dtype."""
    x, layer = norm(p["mlp_norm"], y).astype(dtype), _cast(p["mlp_layer"], dtype)
    hidden = jax.nn.gelu(x @ layer["up"]["kernel"] + layer["up"]["bias"])
    return (hidden @ layer["down"]["kernel"] + layer["down"]["bias"]).astype(y.dtype)


def _cast(tree: Params, dtype: Any) -> Params:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def sequential_layer(p: Params, y: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """The pre-LN layer."""
    y = y + attention(p, y, dtype)
    return y + mlp(p, y, dtype)


def parallel_layer(p: Params, y: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """The parallel layer."""
    return y + attention(p, y, dtype) + mlp(p, y, dtype)


def macaron_layer(p: Params, y: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """The Macaron layer, whose two half MLPs share their weights."""
    y = y + mlp(p, y, dtype) / 2
    y = y + attention(p, y, dtype)
    return y + mlp(p, y, dtype) / 2


def rk4_layer(
    p: Params, y: jax.Array, dtype: Any = jnp.float32, recompute_stages: bool = True
) -> jax.Array:
    """One classical Runge-Kutta step on attention + mlp; each stage is recomputed by default."""
    slope = lambda p, y: attention(p, y, dtype) + mlp(p, y, dtype)
    if recompute_stages:
        slope = jax.checkpoint(slope)

    k1 = slope(p, y)
    k2 = slope(p, y + k1 / 2)
    k3 = slope(p, y + k2 / 2)
    k4 = slope(p, y + k3)
    return y + (k1 + 2 * k2 + 2 * k3 + k4) / 6


LAYERS: dict[str, Callable[[Params, jax.Array], jax.Array]] = {
    "lie_trotter": sequential_layer,
    "strang": macaron_layer,
    "euler": parallel_layer,
    "rk4": rk4_layer,
}


def stack(
    layer: Callable[[Params, jax.Array], jax.Array], params: Params, y: jax.Array
) -> jax.Array:
    """Applies a layer once for each entry of the parameters' leading axis."""
    body = jax.checkpoint(lambda y, p: (layer(p, y), None), prevent_cse=False)
    return jax.lax.scan(body, y, params)[0]


def shared_stack(
    layer: Callable[[Params, jax.Array], jax.Array], params: Params, y: jax.Array, steps: int
) -> jax.Array:
    """Applies a layer `steps` times, with the only entry of the parameters' leading axis."""
    shared = jax.tree.map(lambda p: p[0], params)
    body = jax.checkpoint(lambda y, _: (layer(shared, y), None), prevent_cse=False)
    return jax.lax.scan(body, y, None, length=steps)[0]


def vit(
    layer: Callable[[Params, jax.Array], jax.Array],
    params: Params,
    images: jax.Array,
    patch_size: int,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """A vision transformer with a class token and learned positions, on the parameters of `ViT`.

    Args:
      layer: applied once for each group of `params["depth"]["groups"]`.
      params: of `odeformer.ViT`.
      images: [B, height, width, channels] float32.
      patch_size: side of a patch in pixels.
      dtype: of the products that embed the patches; the layer has its own.

    Returns:
      Logits [B, C] float32.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    patches = images.reshape(batch, rows, patch_size, columns, patch_size, channels)
    patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)

    embedding = _cast(params["patches"]["projection"], dtype)
    tokens = patches.astype(dtype) @ embedding["kernel"] + embedding["bias"]
    first = jnp.broadcast_to(params["class_token"], (batch, 1, tokens.shape[-1]))
    y = jnp.concatenate([first, tokens.astype(jnp.float32)], axis=1) + params["positions"]

    y = stack(layer, params["depth"]["groups"], y)
    head = params["head"]
    return norm(params["norm"], y)[:, 0] @ head["kernel"] + head["bias"]
