"""Transformer stacks without a solver, written by hand over the same parameters: the yardstick.

Each takes the parameters of an ODEStack (stacked over groups) and a state [B, N, D], and scans
over the layers or, where they share their parameters, over the steps; each one is recomputed in
the backward pass. No diffrax, no flax.
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


def attention(p: Params, y: jax.Array) -> jax.Array:
    """attention(norm(y)), [B, N, D] -> [B, N, D]."""
    x, layer = norm(p["attention_norm"], y), p["attention_layer"]
    qkv = jnp.einsum("bnd,dchk->bnchk", x, layer["qkv"]["kernel"]) + layer["qkv"]["bias"]
    mixed = jax.nn.dot_product_attention(*(qkv[:, :, i] for i in range(3)))
    return jnp.einsum("bnhk,hkd->bnd", mixed, layer["out"]["kernel"]) + layer["out"]["bias"]


def mlp(p: Params, y: jax.Array) -> jax.Array:
    """mlp(norm(y)), [B, N, D] -> [B, N, D]."""
    x, layer = norm(p["mlp_norm"], y), p["mlp_layer"]
    hidden = jax.nn.gelu(x @ layer["up"]["kernel"] + layer["up"]["bias"])
    return hidden @ layer["down"]["kernel"] + layer["down"]["bias"]


def sequential_layer(p: Params, y: jax.Array) -> jax.Array:
    """The pre-LN layer."""
    y = y + attention(p, y)
    return y + mlp(p, y)


def parallel_layer(p: Params, y: jax.Array) -> jax.Array:
    """The parallel layer."""
    return y + attention(p, y) + mlp(p, y)


def macaron_layer(p: Params, y: jax.Array) -> jax.Array:
    """The Macaron layer, whose two half MLPs share their weights."""
    y = y + mlp(p, y) / 2
    y = y + attention(p, y)
    return y + mlp(p, y) / 2


def rk4_layer(p: Params, y: jax.Array) -> jax.Array:
    """One classical Runge-Kutta step on attention + mlp, each stage recomputed."""
    slope = jax.checkpoint(lambda p, y: attention(p, y) + mlp(p, y))
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
