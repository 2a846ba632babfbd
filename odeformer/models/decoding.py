"""Incremental decoding: new tokens of a causal model, without reading earlier ones again.

In a causal model the slope at token i depends on the tokens up to i only, at every evaluation of
the attention term in every step. So keys and values are kept for each of these evaluations.

Arrays carry their axes in their names: G groups, E evaluations of the attention term per step, B
batch, C new tokens of a chunk, S places of a cache, D width, H heads, K head size, V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from odeformer.models.checks import check_tokens
from odeformer.models.lm import LM, LMConfig
from odeformer.ode import solvers
from odeformer.ode.steps import staged_step, step_times
from odeformer.transformer.attention import KeyValues
from odeformer.transformer.field import TERMS, TransformerField, transformer_field
from odeformer.transformer.layers import param_dtype

# Indices of the field's terms.
ATTENTION, MLP = range(2)


class Cache(NamedTuple):
    """Keys and values of the tokens that a model has read, for each evaluation of attention.

    Attributes:
      k: keys, [G, steps, E, B, S, H, K].
      v: values, [G, steps, E, B, S, H, K].
      filled: int32 [B], how many tokens of each sample were read.
      sums: the sums of these tokens' values, [G, steps, E, B, H, K] float32 or float64, where
        attention is centred; else None.
    """

    k: jax.Array
    v: jax.Array
    filled: jax.Array
    sums: jax.Array | None = None


def init_cache(config: LMConfig, batch: int, places: int | None = None) -> Cache:
    """Returns the cache of a model that has read nothing.

    Args:
      config: of the model.
      batch: B, number of sequences.
      places: S, the most tokens that a sequence will have; None: the block's size.

    Returns:
      A Cache of zeros, keys and values in the dtype of the matrix products, sums in the state's.
    """
    depth = config.depth

    # A solver with several stages attends several times per step, each time from another state.
    evaluations = int(solvers.evaluations(depth.solver, TERMS)[ATTENTION])

    places = config.block_size if places is None else places
    heads = (config.heads, config.width // config.heads)
    each = (depth.groups, depth.fixed_steps, evaluations, batch)
    k, v = (jnp.zeros((*each, places, *heads), config.dtype) for _ in range(2))
    sums = jnp.zeros((*each, *heads), param_dtype(config.dtype)) if config.centre else None
    return Cache(k, v, jnp.zeros(batch, jnp.int32), sums)


def decode(
    model: LM,
    variables: Any,
    tokens_BC: jax.Array,
    cache: Cache,
    lengths_B: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
    """Reads C more tokens of each sequence: the logits are those of a pass over all tokens.

    Jit it with the cache donated: each call then writes to it in place.

    Args:
      model: the model.
      variables: its parameters.
      tokens_BC: int [B, C], the tokens that follow those in the cache; shorter sequences are padded
        on the right with any tokens. A sequence's tokens fit the cache's places; those beyond
        them are lost.
      cache: of the earlier tokens.
      lengths_B: int [B], how many of the C are tokens of each sequence; None: all of them.

    Returns:
      The logits of each sequence's last token, [B, V] float32, float64 with dtype float64; and the
      cache with the new tokens.

    Raises:
      ValueError: tokens of another shape or dtype, more of them than the block holds, or (where
        they are known before tracing) out of the vocabulary's range.
    """
    check_tokens(tokens_BC, model.config.vocabulary, model.config.block_size)
    if lengths_B is None:
        lengths_B = jnp.full(len(tokens_BC), tokens_BC.shape[1], jnp.int32)

    y_BCD, cache = advance(model, variables, tokens_BC, cache, lengths_B)

    # Only these states meet the head, whose product over a large vocabulary is the dearest.
    last_B11 = jnp.maximum(lengths_B - 1, 0)[:, None, None]
    y_B1D = jnp.take_along_axis(y_BCD, last_B11, axis=1)
    return predict(model, variables, y_B1D)[:, 0], cache


def advance(
    model: LM, variables: Any, tokens_BC: jax.Array, cache: Cache, lengths_B: jax.Array
) -> tuple[jax.Array, Cache]:
    """Reads C more tokens of each sequence, as `decode` does, which checks them.

    Returns:
      The states of all C tokens after the last group, [B, C, D]; and the cache with these tokens.
    """
    batch, new = tokens_BC.shape
    places_BC = cache.filled[:, None] + jnp.arange(new, dtype=jnp.int32)[None]

    # Padding may lie beyond the block's end, for which there is no learned position.
    positions_BC = jnp.minimum(places_BC, model.config.block_size - 1)
    y_BCD: Any = model.apply(variables, tokens_BC, positions_BC, method="embed")
    rotation: Any = model.apply(variables, positions_BC, method="rotation")
    y_BCD, (k, v) = _integrate(model.config, variables, y_BCD, cache, rotation)

    # Padding is written after the first `filled` places: nothing sees it until tokens overwrite it.
    samples_B1 = jnp.arange(batch)[:, None]

    def write(places: jax.Array, new: jax.Array) -> jax.Array:
        at = places.at[:, :, :, samples_B1, places_BC]
        return at.set(new, mode="drop", unique_indices=True)

    sums = cache.sums
    if sums is not None:
        real_BC11 = (jnp.arange(new)[None] < lengths_B[:, None])[..., None, None]
        added = jnp.where(jnp.expand_dims(real_BC11, (0, 1, 2)), v.astype(sums.dtype), 0)
        sums += added.sum(axis=4)

    return y_BCD, Cache(write(cache.k, k), write(cache.v, v), cache.filled + lengths_B, sums)


def predict(model: LM, variables: Any, y_BCD: jax.Array) -> jax.Array:
    """Returns the logits of states after the last group, [B, C, V]."""

    def head(model: LM, y_BCD: jax.Array) -> jax.Array:
        return model.predict(model.norm(y_BCD))

    logits_BCV: Any = model.apply(variables, y_BCD, method=head)
    return logits_BCV


def _integrate(
    config: LMConfig,
    variables: Any,
    y_BCD: jax.Array,
    cache: Cache,
    rotation: jax.Array | None,
) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """The state after the last group; the new keys and values, [G, steps, E, B, C, H, K] each."""
    depth, field = config.depth, transformer_field(config)

    # LMConfig refuses adaptive steps.
    assert depth.fixed_steps is not None
    times = jnp.asarray(step_times(0.0, float(depth.share), depth.fixed_steps, y_BCD.dtype))

    def group(y_BCD, xs):
        theta, offset, k, v, sums = xs

        def step(y_BCD, xs):
            t0, t1, k, v, sums = xs
            step_cache = Cache(k, v, cache.filled, sums)
            evaluate, new = _make_evaluate(field, theta, offset, step_cache, rotation)
            y_BCD = staged_step(depth.solver, TERMS, evaluate, t0=t0, t1=t1, y0=y_BCD)

            k, v = (jnp.stack(evaluations) for evaluations in zip(*new, strict=True))
            return y_BCD, (k, v)

        return jax.lax.scan(step, y_BCD, (times[:-1], times[1:], k, v, sums))

    # The same scan over groups as in the stack, with the cache's part of each group.
    theta = variables["params"]["depth"]["groups"]
    offsets = depth.share * jnp.arange(depth.groups, dtype=y_BCD.dtype)
    return jax.lax.scan(group, y_BCD, (theta, offsets, cache.k, cache.v, cache.sums))


def _make_evaluate(
    field: TransformerField,
    theta: Any,
    offset: jax.Array,
    cache: Cache,
    rotation: jax.Array | None,
):
    """A step's slope for `staged_step`, and the list to which it adds new keys and values.

    The cache is that of one step: k and v [E, B, S, H, K], sums [E, B, H, K] or None.
    """
    # Filled while the step is traced, in the order in which the step evaluates attention.
    variables, new = {"params": theta}, []

    def attention(n: int, t: jax.Array, y_BCD: jax.Array) -> jax.Array:
        sums = None if cache.sums is None else cache.sums[n]
        seen = KeyValues(cache.k[n], cache.v[n], cache.filled, sums)
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
