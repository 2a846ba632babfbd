"""Incremental decoding: new tokens of a causal model, without those before them again.

In a causal model the slope at token i depends on tokens up to i alone, at every evaluation of the
attention term in every step. So keys and values are kept for each of these evaluations.

Arrays carry their axes in their names: G groups, E evaluations of the attention term a step, B
batch, C new tokens of a chunk, S places of a cache, D width, H heads, K head size, V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from odeformer.models.lm import LM, LMConfig
from odeformer.models.tokens import check_tokens
from odeformer.ode import solvers
from odeformer.ode.steps import staged_step
from odeformer.ode.times import step_times
from odeformer.transformer.attention import KeyValues
from odeformer.transformer.field import TransformerField, transformer_field

ATTENTION, MLP = range(2)  # the field's terms


class Cache(NamedTuple):
    """Keys and values of the tokens that a model has read.

    Attributes:
      k: keys, [G, steps, E, B, S, H, K].
      v: values, [G, steps, E, B, S, H, K].
      filled: int32 [B], how many tokens of each sample were read.
    """

    k: jax.Array
    v: jax.Array
    filled: jax.Array


def init_cache(config: LMConfig, batch: int, places: int | None = None) -> Cache:
    """Returns the cache of a model that has read nothing.

    Args:
      config: the model's.
      batch: B, number of sequences.
      places: S, the most tokens that a sequence comes to; None: the block's size.

    Returns:
      A Cache of zeros, keys and values in the dtype of the matrix products.
    """
    depth = config.depth
    evaluations = int(solvers.evaluations(depth.solver, 2)[ATTENTION])
    places = config.block_size if places is None else places
    heads = (config.heads, config.width // config.heads)
    shape = (depth.groups, depth.fixed_steps, evaluations, batch, places, *heads)
    k, v = (jnp.zeros(shape, config.dtype) for _ in range(2))
    return Cache(k, v, jnp.zeros(batch, jnp.int32))


def decode(
    model: LM,
    variables: Any,
    tokens_BC: jax.Array,
    cache: Cache,
    lengths_B: jax.Array | None = None,
    everywhere: bool = False,
) -> tuple[jax.Array, Cache]:
    """Reads C more tokens of each sequence: the logits are those of a pass over all tokens.

    To be jitted with the cache donated, which is then written to in place, once a call.

    Args:
      model: the model.
      variables: its parameters.
      tokens_BC: int [B, C], the tokens behind those in the cache; shorter sequences are filled up
        on the right with any tokens. A sequence's tokens fit the cache's places; those beyond
        them are lost.
      cache: of the tokens before them.
      lengths_B: int [B], how many of the C are tokens of each sequence; None: all of them.
      everywhere: whether the logits of all C tokens are asked for.

    Returns:
      The logits of each sequence's last token, [B, V] (everywhere: of all C, [B, C, V]), float32,
      float64 with dtype float64; and the cache, C tokens on.

    Raises:
      ValueError: tokens of another shape or dtype, more of them than the block holds, or (where
        they are known before tracing) out of the vocabulary's range.
    """
    check_tokens(tokens_BC, model.config)
    new = tokens_BC.shape[1]
    if lengths_B is None:
        lengths_B = jnp.full(len(tokens_BC), new, jnp.int32)
    places_BC = cache.filled[:, None] + jnp.arange(new, dtype=jnp.int32)[None]
    # Filling may lie behind the block's end, where a learned position would be NaN.
    positions_BC = jnp.minimum(places_BC, model.config.block_size - 1)
    y_BCD: Any = model.apply(variables, tokens_BC, positions_BC, method="embed")
    rotation: Any = model.apply(variables, positions_BC, method="rotation")
    y_BCD, (k, v) = _integrate(model.config, variables, y_BCD, cache, rotation)
    if not everywhere:
        last_B11 = jnp.maximum(lengths_B - 1, 0)[:, None, None]
        y_BCD = jnp.take_along_axis(y_BCD, last_B11, axis=1)
    logits_BCV: Any = model.apply(variables, y_BCD, method=_predict)
    samples_B1 = jnp.arange(len(tokens_BC))[:, None]
    # The places of filling are behind `filled`: nothing sees them until tokens overwrite them.
    cache = Cache(
        cache.k.at[:, :, :, samples_B1, places_BC].set(k, mode="drop", unique_indices=True),
        cache.v.at[:, :, :, samples_B1, places_BC].set(v, mode="drop", unique_indices=True),
        cache.filled + lengths_B,
    )
    return (logits_BCV if everywhere else logits_BCV[:, 0]), cache


def _predict(model: LM, y_BCD: jax.Array) -> jax.Array:
    return model.predict(model.norm(y_BCD))


def _integrate(
    config: LMConfig,
    variables: Any,
    y_BCD: jax.Array,
    cache: Cache,
    rotation: jax.Array | None,
) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """The state behind the last group; the new keys and values, [G, steps, E, B, C, H, K] each."""
    depth, field = config.depth, transformer_field(config, causal=True)
    assert depth.fixed_steps is not None  # LMConfig refuses adaptive steps
    times = jnp.asarray(step_times(0.0, float(depth.share), depth.fixed_steps, y_BCD.dtype))

    def group(y_BCD, xs):
        theta, offset, k, v = xs

        def step(y_BCD, xs):
            t0, t1, k, v = xs
            evaluate, new = _make_evaluate(
                field, theta, offset, Cache(k, v, cache.filled), rotation
            )
            y_BCD = staged_step(depth.solver, 2, evaluate, t0, t1, y_BCD)
            k, v = (jnp.stack(evaluations) for evaluations in zip(*new, strict=True))
            return y_BCD, (k, v)

        return jax.lax.scan(step, y_BCD, (times[:-1], times[1:], k, v))

    theta = variables["params"]["depth"]["groups"]
    offsets = depth.share * jnp.arange(depth.groups, dtype=y_BCD.dtype)
    return jax.lax.scan(group, y_BCD, (theta, offsets, cache.k, cache.v))


def _make_evaluate(
    field: TransformerField,
    theta: Any,
    offset: jax.Array,
    cache: Cache,
    rotation: jax.Array | None,
):
    """A step's slope for `staged_step`, and the list that it appends new keys and values to.

    The cache is the step's own, [E, B, S, H, K].
    """
    variables, new = {"params": theta}, []

    def attention(n: int, t: jax.Array, y_BCD: jax.Array) -> jax.Array:
        seen = KeyValues(cache.k[n], cache.v[n], cache.filled)
        slope_BCD, keys_and_values = field.apply(
            variables, t, y_BCD, seen, rotation, method="extend_attention"
        )
        new.append(keys_and_values)
        return slope_BCD

    def evaluate(term: int | None, n: int, t: jax.Array, y_BCD: Any) -> jax.Array:
        t = t + offset
        if term == ATTENTION:
            return attention(n, t, y_BCD)
        mlp_BCD: Any = field.apply(variables, t, y_BCD, method="mlp_term")
        return mlp_BCD if term == MLP else attention(n, t, y_BCD) + mlp_BCD

    return evaluate, new
