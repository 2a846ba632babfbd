"""The vector field of a transformer: dy/dt = attention(norm(y)) + mlp(norm(y))."""

import contextlib
import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from odeformer.checks import COUNT, FINITE, FLAG, RATE, check_settings, one_of, setting
from odeformer.errors import check_flag, check_positive_int
from odeformer.ode.problem import VectorField
from odeformer.transformer.attention import Attention, KeyValues, Layout
from odeformer.transformer.checks import ATTENTIONS, DTYPES, TIME, check_attention, check_dtype
from odeformer.transformer.layers import MLP, Dropout, TimeEmbedding, layer_norm, param_dtype
from odeformer.transformer.sharding import sample_numbers, without_batch

# Attention and MLP.
TERMS = 2


class TransformerField(nn.Module):
    """The terms f_1 = attention(norm(y)) and f_2 = mlp(norm(y)), each with its own norm.

    Attributes:
      width: D, the size of the state's last axis.
      heads: number of attention heads; they divide the width.
      mlp: M, the MLP's hidden size.
      dropout: rate at which entries of a term's slope are dropped in training.
      drop_path: rate at which a sample's slope is dropped as a whole, at the last layer; it grows
        linearly from 0 at the first (Touvron et al. 2021, arXiv 2012.12877).
      layers: depth T of the whole stack, in layers, over which drop_path grows; an ODEStack sets
        it to its own.
      time: 'none', or 'additive': a learned embedding of t is added to the normed state.
      fused: compute the sum from one norm and one matrix product for Q, K, V and the MLP's input,
        the norms' scales and biases folded into it: the same function, from the same parameters.
      dtype: dtype of the matrix products, 'float32', 'bfloat16' or 'float64'; norms, softmax and
        slopes are float32 or above.
      attention: 'auto', 'xla' or 'cudnn', of `jax.nn.dot_product_attention`.
      causal: whether a token sees only itself and those before it.
      centre: how much of the mean of the visible values attention subtracts; see `Attention`.

    Raises:
      ValueError: a size, a rate, a number or a name that is not accepted.
    """

    width: int
    heads: int
    mlp: int
    dropout: float = 0.0
    drop_path: float = 0.0
    layers: int = 12
    time: str = "none"
    fused: bool = False
    dtype: Any = jnp.float32
    attention: str = "auto"
    causal: bool = False
    centre: float = 0.0

    def __post_init__(self):
        # All but the dtype, which a config names and a module has.
        check_settings(self, FieldConfig, but=("dtype",))
        check_dtype(self.dtype)
        check_positive_int(layers=self.layers)
        check_flag(causal=self.causal)
        check_attention(self.width, self.heads, self.dtype, self.attention)
        super().__post_init__()

    def setup(self):
        self.attention_norm = layer_norm(self.dtype)
        self.mlp_norm = layer_norm(self.dtype)
        self.bare_norm = layer_norm(self.dtype, affine=False)

        self.attention_layer = Attention(
            self.heads, self.width, self.dtype, self.attention, self.causal, self.centre
        )
        self.mlp_layer = MLP(self.width, self.mlp, self.dtype)

        # A dropout of its own for each term, so that their masks are independent.
        self.drops = {name: (Dropout(), Dropout(whole=True)) for name in ("attention", "mlp")}
        if self.time == "additive":
            self.time_embedding = TimeEmbedding(self.width, dtype=self.dtype)

    def attention_term(
        self, t: jax.Array, y_BND: jax.Array, train: bool = False, layout: Layout | None = None
    ) -> jax.Array:
        """f_1(t, y): [B, N, D] -> [B, N, D]."""
        out_BND = self.attention_layer(self._timed(t, self.attention_norm(y_BND)), layout)
        return self._slope(
            "attention", t=t, y_BND=y_BND, out_BND=out_BND, train=train, layout=layout
        )

    def mlp_term(
        self, t: jax.Array, y_BND: jax.Array, train: bool = False, layout: Layout | None = None
    ) -> jax.Array:
        """f_2(t, y): [B, N, D] -> [B, N, D]; the layout's segments and rotation have no effect."""
        out_BND = self.mlp_layer(self._timed(t, self.mlp_norm(y_BND)))
        return self._slope("mlp", t=t, y_BND=y_BND, out_BND=out_BND, train=train, layout=layout)

    def total(
        self, t: jax.Array, y_BND: jax.Array, train: bool = False, layout: Layout | None = None
    ) -> jax.Array:
        """f_1 + f_2, through the fused input product where `fused` is set."""
        # The unfused path creates the parameters, so that both paths share one tree.
        if not self.fused or self.is_initializing():
            attention = self.attention_term(t, y_BND, train, layout)
            return attention + self.mlp_term(t, y_BND, train, layout)

        # The norms' scales and biases are in the kernel: one bare norm serves both terms.
        kernel, bias = self._folded_input(t)
        x_BND = self.bare_norm(y_BND).astype(self.dtype)
        z = x_BND @ kernel.astype(self.dtype) + bias.astype(self.dtype)[None, None]
        qkv, hidden = jnp.split(z, [3 * self.width], axis=-1)
        qkv_BN3HK = qkv.reshape(*qkv.shape[:-1], 3, self.heads, self.width // self.heads)
        attention = self.attention_layer.mix(qkv_BN3HK, layout)
        mlp = self.mlp_layer.activate(hidden)

        slope = functools.partial(self._slope, t=t, y_BND=y_BND, train=train, layout=layout)
        return slope("attention", out_BND=attention) + slope("mlp", out_BND=mlp)

    def extend_attention(
        self, t: jax.Array, y_BCD: jax.Array, seen: KeyValues, rotation: jax.Array | None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """f_1(t, y) of new tokens that follow earlier ones; see `Attention.extend`."""
        x_BCD = self._timed(t, self.attention_norm(y_BCD))
        out_BCD, new = self.attention_layer.extend(x_BCD, seen, rotation)
        return out_BCD.astype(y_BCD.dtype), new

    def _folded_input(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Kernel [D, 3 D + M] and bias [3 D + M] that act on the bare norm of the state."""
        # Folded in float32 or above, whatever the parameters were cast to.
        exact = param_dtype(self.dtype)
        kernels, biases = [], []
        for norm, dense in (
            (self.attention_norm, self.attention_layer.qkv),
            (self.mlp_norm, self.mlp_layer.up),
        ):
            affine, product = norm.variables["params"], dense.variables["params"]
            scale, shift = affine["scale"].astype(exact), affine["bias"].astype(exact)
            kernel, bias = product["kernel"].astype(exact), product["bias"].astype(exact)
            kernel, bias = kernel.reshape(self.width, -1), bias.reshape(-1)

            # (scale x + shift) K + b = x (scale K) + (shift K + b); the time adds to the shift.
            kernels.append(scale[:, None] * kernel)
            biases.append(self._timed(t, shift) @ kernel + bias)

        return jnp.concatenate(kernels, axis=1), jnp.concatenate(biases)

    def _timed(self, t: jax.Array, x: jax.Array) -> jax.Array:
        if self.time == "none":
            return x

        return x + jnp.broadcast_to(self.time_embedding(t).astype(x.dtype), x.shape)

    def _slope(
        self,
        term: str,
        *,
        t: jax.Array,
        y_BND: jax.Array,
        out_BND: jax.Array,
        train: bool,
        layout: Layout | None,
    ) -> jax.Array:
        """A term's output as a slope: in the state's dtype, with dropout and drop-path."""
        slope_BND = out_BND.astype(y_BND.dtype)
        if not train:
            return slope_BND

        # Inside a solve that is split over a mesh only the stack knows the samples' numbers.
        samples_B = None if layout is None else layout.samples
        samples_B = sample_numbers(y_BND.shape[0]) if samples_B is None else samples_B

        dropout, drop_path = self.drops[term]
        if self.dropout:
            slope_BND = dropout(slope_BND, self.dropout, samples_B)
        if self.drop_path:
            # Linear in the depth-time t, which is traced: a rate per layer, without a list of them.
            rate = self.drop_path * jnp.clip(t / max(self.layers - 1, 1), 0.0, 1.0)
            slope_BND = drop_path(slope_BND, rate, samples_B)

        return slope_BND


def init_params(field: TransformerField, key: jax.Array, y_BND: jax.Array) -> Any:
    """Returns the parameters of one layer of the field, for a state of y's shape."""
    # Outside any solve: a module that creates them inside one leaks tracers (google/flax#2887).
    return field.init(key, jnp.zeros((), y_BND.dtype), y_BND, method="total")["params"]


class FieldParams(NamedTuple):
    """The params that the terms of `make_vector_field` take.

    Attributes:
      theta: one layer's parameters.
      offset: the depth-time of the solve's own time 0.
      layout: how the tokens lie in their sequences; None: each sees all of its sample.
    """

    theta: Any
    offset: Any
    layout: Layout | None = None


def make_vector_field(
    field: TransformerField, train: bool = False, local: bool = False
) -> VectorField:
    """Returns the module as pure functions f_j(t, y, params, key).

    Args:
      field: the module; bound parameters are not used.
      train: whether dropout and drop-path act; the solve then needs a key.
      local: whether the activations are those of one shard of the batch, or of one sample.

    Returns:
      A VectorField whose params are `FieldParams`, or the same as a plain tuple.
    """

    def term(method: str):
        def slope(t, y, params, *key):
            theta, offset, layout = FieldParams(*params)
            variables, rngs = {"params": theta}, {"dropout": key[0]} if key else None
            apply = functools.partial(field.apply, variables, method=method, rngs=rngs)

            # Inside the slope: an adjoint may trace it again, after any context around the solve.
            with without_batch() if local else contextlib.nullcontext():
                return apply(t + offset, y, train, layout)

        return slope

    return VectorField((term("attention_term"), term("mlp_term")), total=term("total"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldConfig:
    """What the configs of all models say of the vector field.

    Attributes:
      width: D, size of the state's last axis.
      heads: number of attention heads; they divide the width.
      mlp: M, the MLP's hidden size.
      dropout: rate of dropout on the embedded tokens and on each term's slope.
      drop_path: rate of stochastic depth at the last layer, growing from 0 at the first.
      dtype: dtype of the matrix products of the embedded patches and of the field, 'float32',
        'bfloat16' or 'float64' (with jax_enable_x64); parameters, state, head and logits are
        float32, float64 with float64.
      time: 'none', or 'additive': the field knows the depth-time t.
      fused: one input product for attention and MLP in the parallel sum.
      attention: implementation of `jax.nn.dot_product_attention`: 'auto', 'xla' or 'cudnn'.
      centre: how much of the mean over the visible tokens attention subtracts from what it mixes;
        0 is plain attention, 1 makes the rows of its weights sum to 0.
    """

    width: int = setting(COUNT)
    heads: int = setting(COUNT)
    mlp: int = setting(COUNT)
    dropout: float = setting(RATE, 0.0)
    drop_path: float = setting(RATE, 0.0)
    dtype: str = setting(one_of(DTYPES), "float32")
    time: str = setting(one_of(TIME), "none")
    fused: bool = setting(FLAG, False)
    attention: str = setting(one_of(ATTENTIONS), "auto")
    centre: float = setting(FINITE, 0.0)

    # Whether a token sees only itself and those before it: of a model, and no setting.
    causal: ClassVar[bool] = False


def transformer_field(config: FieldConfig) -> TransformerField:
    """Returns the unbound vector field of a model of that config."""
    return TransformerField(
        width=config.width,
        heads=config.heads,
        mlp=config.mlp,
        dropout=config.dropout,
        drop_path=config.drop_path,
        time=config.time,
        fused=config.fused,
        dtype=jnp.dtype(config.dtype),
        attention=config.attention,
        centre=config.centre,
        causal=config.causal,
        parent=None,
    )
