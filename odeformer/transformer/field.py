"""The vector field of a transformer: dy/dt = attention(norm(y)) + mlp(norm(y)), or other terms."""

import contextlib
import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from odeformer.checks import check_settings
from odeformer.errors import check_flag, check_positive_int
from odeformer.ode.problem import State, VectorField
from odeformer.transformer import term_checks, terms
from odeformer.transformer.checks import check_attention, check_dtype
from odeformer.transformer.config import TERMS, FieldConfig
from odeformer.transformer.fused import fused_outputs
from odeformer.transformer.layers import Dropout, TimeEmbedding
from odeformer.transformer.mesh import sample_numbers, without_batch
from odeformer.transformer.norms import EPSILON, LayerScale, layer_norm
from odeformer.transformer.state import Context, Y, filled, tokens


class TransformerField(nn.Module):
    """The terms of a field, by default f_1 = attention(norm(y)) and f_2 = mlp(norm(y)).

    Each has a norm of its own. The state is an array [B, N, D]; where terms add streams to it, a
    dict of arrays, the tokens as 'y'.

    Attributes:
      width: D, the size of the state's last axis.
      heads: number of attention heads; they divide the width, unless head_size is given.
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
      terms: names of `odeformer.terms`, in the order of a splitting's sub-steps.
      activation: 'gelu_tanh', 'gelu', 'relu' or 'silu', of the MLP.
      norm_epsilon: what every norm adds to the variance, or to the mean square.
      gated, mlp_bias, norm, kv_heads, head_size, qk_norm, qkv_bias, out_bias: see `FieldConfig`.
      layer_scale: of each term's slope at initialisation, see `LayerScale`; None: not scaled.

    Raises:
      ValueError: a size, a rate, a number or a name that is not accepted, or terms that do not fit
        one another, a causal field, or `fused`.
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
    terms: tuple[str, ...] = TERMS
    activation: str = "gelu_tanh"
    norm_epsilon: float = EPSILON
    gated: bool = False
    mlp_bias: bool = True
    norm: str = "layer"
    kv_heads: int | None = None
    head_size: int | None = None
    qk_norm: bool = False
    qkv_bias: bool = True
    out_bias: bool = True
    layer_scale: float | None = None

    def __post_init__(self):
        if isinstance(self.terms, list):
            object.__setattr__(self, "terms", tuple(self.terms))
        # All but the dtype, which a config names and a module has.
        check_settings(self, FieldConfig, but=("dtype",))
        check_dtype(self.dtype)
        check_positive_int(layers=self.layers)
        check_flag(causal=self.causal)
        check_attention(self, self.attention)
        term_checks.check_field(terms.select(self.terms), self, terms.SETTINGS)
        super().__post_init__()

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the state's streams; ('y',) where the state is one array."""
        return terms.streams(self.terms)

    def setup(self):
        for name, term in terms.select(self.terms).items():
            if term.norm is not None:
                setattr(self, f"{name}_norm", term.norm(self))
            setattr(self, f"{name}_layer", term.make(self))
            setattr(self, f"{name}_scale", LayerScale(self.width, self.layer_scale, self.dtype))

        # A dropout of its own for each term, so that their masks are independent.
        self.drops = {name: (Dropout(), Dropout(whole=True)) for name in self.terms}
        self.bare = layer_norm(self.dtype, affine=False, epsilon=self.norm_epsilon)
        if self.time == "additive":
            self.time_embedding = TimeEmbedding(self.width, dtype=self.dtype)

    def term(
        self,
        name: str,
        t: jax.Array,
        state: State,
        train: bool = False,
        context: Context | None = None,
    ) -> State:
        """f_j(t, state) of the term of that name, as the state is; 0 for what it does not move."""
        term_checks.check_state(state, self.streams)
        return filled(self._slopes(name, t, state, train, context), state)

    def total(
        self, t: jax.Array, state: State, train: bool = False, context: Context | None = None
    ) -> State:
        """f_1 + f_2 + ..., through the fused input product where `fused` is set."""
        term_checks.check_state(state, self.streams)
        outputs: dict[str, jax.Array] = {}

        # The unfused path creates the parameters, so that both paths share one tree.
        if self.fused and not self.is_initializing():
            outputs = fused_outputs(self, t, tokens(state), context)

        total: dict[str, jax.Array] = {}
        for name in self.terms:
            output = outputs.get(name)
            slopes = self._slopes(name, t, state, train, context, output=output)
            total |= {s: total[s] + dy if s in total else dy for s, dy in slopes.items()}

        return filled(total, state)

    def extend(
        self,
        name: str,
        t: jax.Array,
        y_BCD: jax.Array,
        cache: Any,
        filled_B: jax.Array,
        rotation: jax.Array | None,
    ) -> tuple[jax.Array, Any]:
        """f_j(t, y) of new tokens that follow earlier ones, and what a cache keeps of them.

        Args:
          name: of a term that is decoded with a cache.
          t: the depth-time.
          y_BCD: the new tokens, [B, C, D].
          cache: of the earlier tokens; see `Cached`.
          filled_B: how many these are, int [B].
          rotation: of the new tokens' positions, where positions are rotary.
        """
        cached: Any = terms.get(name).decoding
        layer = getattr(self, f"{name}_layer")
        out_BCD, new = cached.extend(layer, self._input(name, t, y_BCD), cache, filled_B, rotation)
        return getattr(self, f"{name}_scale")(out_BCD.astype(y_BCD.dtype)), new

    def timed(self, t: jax.Array, x: jax.Array) -> jax.Array:
        """x, with the embedding of the time added to it if the field knows the time."""
        if self.time == "none":
            return x

        return x + jnp.broadcast_to(self.time_embedding(t).astype(x.dtype), x.shape)

    def _input(self, name: str, t: jax.Array, state: State) -> Any:
        """What the layer of a term is called with."""
        term, y_BND = terms.get(name), tokens(state)
        if term.norm is not None:
            y_BND = self.timed(t, getattr(self, f"{name}_norm")(y_BND))

        others: Any = state
        return y_BND if term.plain else {Y: y_BND} | {s: others[s] for s in term.adds}

    def _slopes(
        self,
        name: str,
        t: jax.Array,
        state: State,
        train: bool,
        context: Context | None,
        *,
        output: Any = None,
    ) -> dict[str, jax.Array]:
        """The slopes of what a term moves, in the state's dtype, with dropout and drop-path."""
        term = terms.get(name)
        if term.inputs:
            source = None if context is None else context.source
            term_checks.check_source(name, source, len(tokens(state)))

        if output is None:
            output = getattr(self, f"{name}_layer")(self._input(name, t, state), context)
        if term.plain:
            output = {Y: output}
        term_checks.check_slopes(name, output, term.moves)

        dtype = tokens(state).dtype
        scale = getattr(self, f"{name}_scale")
        slopes = {stream: scale(output[stream].astype(dtype)) for stream in term.moves}
        return self._dropped(name, t, slopes, context) if train else slopes

    def _dropped(
        self, name: str, t: jax.Array, slopes: dict[str, jax.Array], context: Context | None
    ) -> dict[str, jax.Array]:
        # Inside a solve that is split over a mesh only the stack knows the samples' numbers.
        samples_B = None if context is None else context.samples
        batch = next(iter(slopes.values())).shape[0]
        samples_B = sample_numbers(batch) if samples_B is None else samples_B

        dropout, drop_path = self.drops[name]
        if self.dropout:
            slopes = {s: dropout(dy, self.dropout, samples_B) for s, dy in slopes.items()}
        if not self.drop_path:
            return slopes

        # Linear in the depth-time t, which is traced: a rate per layer, without a list of them.
        rate = self.drop_path * jnp.clip(t / max(self.layers - 1, 1), 0.0, 1.0)
        if len(slopes) == 1:
            return {s: drop_path(dy, rate, samples_B) for s, dy in slopes.items()}

        # A sample loses the slopes of all streams, or keeps them all.
        kept_B = drop_path(jnp.ones(batch, t.dtype), rate, samples_B)
        return {s: jax.vmap(jnp.multiply)(kept_B.astype(dy.dtype), dy) for s, dy in slopes.items()}


def init_params(
    field: TransformerField, key: jax.Array, state: State, context: Context | None = None
) -> Any:
    """Returns the parameters of one layer of the field, for a state of that shape."""
    # Outside any solve: a module that creates them inside one leaks tracers (google/flax#2887).
    t = jnp.zeros((), tokens(state).dtype)
    return field.init(key, t, state, False, context, method="total")["params"]


class FieldParams(NamedTuple):
    """The params that the terms of `make_vector_field` take.

    Attributes:
      theta: one layer's parameters, or what their function of the time takes.
      offset: the depth-time of the solve's own time 0.
      context: how the tokens lie in their sequences, and what they read; None: each sees all of
        its sample.
    """

    theta: Any
    offset: Any
    context: Context | None = None


def make_vector_field(
    field: TransformerField, train: bool = False, local: bool = False, *, at: Any = None
) -> VectorField:
    """Returns the module as pure functions f_j(t, state, params, key), one per name of its terms.

    Args:
      field: the module; bound parameters are not used.
      train: whether dropout and drop-path act; the solve then needs a key.
      local: whether the activations are those of one shard of the batch, or of one sample.
      at: (theta, t, offset) -> one layer's parameters at the solve's own time t, where theta holds
        the coefficients of a basis; None: theta is one layer's parameters.

    Returns:
      A VectorField whose params are `FieldParams`, or the same as a plain tuple.
    """

    def function(method: str, *name: str):
        def slope(t, state, params, *key):
            theta, offset, context = FieldParams(*params)
            theta = theta if at is None else at(theta, t, offset)
            variables, rngs = {"params": theta}, {"dropout": key[0]} if key else None
            apply = functools.partial(field.apply, variables, *name, method=method, rngs=rngs)

            # Inside the slope: an adjoint may trace it again, after any context around the solve.
            with without_batch() if local else contextlib.nullcontext():
                return apply(t + offset, state, train, context)

        return slope

    each = tuple(function("term", name) for name in field.terms)
    return VectorField(each, total=function("total"))


def transformer_field(config: FieldConfig) -> TransformerField:
    """Returns the unbound vector field of a model of that config."""
    # Each field of a FieldConfig is an attribute of the module, under the same name.
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(FieldConfig)}
    values["dtype"] = jnp.dtype(config.dtype)
    return TransformerField(**values, causal=config.causal, parent=None)
