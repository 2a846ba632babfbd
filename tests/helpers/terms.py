"""Terms for tests: one that reads other tokens, one of two streams, and the latter in numpy."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from odeformer.transformer.terms import Term


class Bridge(nn.Module):
    """tanh(W (x + the mean of the source)): tokens that read those of another sequence."""

    width: int
    dtype: object

    @nn.compact
    def __call__(self, x_BND, context):
        mean_B1D = context.source.mean(axis=1, keepdims=True)
        return jnp.tanh(nn.Dense(self.width, param_dtype=self.dtype, name="up")(x_BND + mean_B1D))


class Gates(nn.Module):
    """dc/dt = i h - (1 - f) c,  dy/dt = o (c + dc/dt) - y: a recurrent cell along depth."""

    width: int
    dtype: object

    @nn.compact
    def __call__(self, state, context=None):
        y, cell = state["y"], state["cell"]
        z = jnp.concatenate([y, cell], axis=-1)
        gates = nn.Dense(4 * self.width, param_dtype=self.dtype, name="up")(z)
        i, f, o, h = jnp.split(gates, 4, axis=-1)
        moved = nn.sigmoid(i) * jnp.tanh(h) - (1 - nn.sigmoid(f)) * cell
        return {"cell": moved, "y": nn.sigmoid(o) * (cell + moved) - y}


def bridge(**changes):
    """The term of `Bridge`."""
    parts = dict(
        make=lambda config: Bridge(config.width, config.dtype),
        flops=lambda config, tokens: 2 * tokens * config.width**2,
        axes={("up", "kernel"): ("width", "mlp")},
        causal=True,
        inputs=True,
    )
    return Term(**parts | changes)


def gates(**changes):
    """The term of `Gates`, which has no norm."""
    parts = dict(
        make=lambda config: Gates(config.width, config.dtype),
        norm=None,
        moves=("y", "cell"),
        adds=("cell",),
        flops=lambda config, tokens: 16 * tokens * config.width**2,
        axes={("up", "kernel"): ("width", "mlp"), ("up", "bias"): ("mlp",)},
        causal=True,
        decoding="tokenwise",
    )
    return Term(**parts | changes)


def gates_by_hand(layer, y, cell):
    """The slopes of `Gates`, in numpy, of complex numbers too."""
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    z = np.concatenate([y, cell], axis=-1)
    i, f, o, h = np.split(z @ layer["up"]["kernel"] + layer["up"]["bias"], 4, axis=-1)
    moved = sigmoid(i) * np.tanh(h) - (1 - sigmoid(f)) * cell
    return sigmoid(o) * (cell + moved) - y, moved
