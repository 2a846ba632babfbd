"""Incremental decoding: new tokens of a causal model, without reading earlier ones again.

In a causal model the slope at token i depends on the tokens up to i only, at every evaluation of
a term in every step. So what a term needs of earlier tokens, such as attention's keys and values,
is kept for each of these evaluations.

Arrays carry their axes in their names: G groups, E evaluations of a term per step, B batch, C new
tokens of a chunk, S places of a cache, D width, H heads, K head size, V vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from odeformer.models.checks import check_tokens
from odeformer.models.lm import LM, LMConfig
from odeformer.ode import reversible, solvers
from odeformer.ode.steps import staged_step
from odeformer.ode.times import step_times
from odeformer.transformer import term_checks, terms
from odeformer.transformer.bases import weights_over_depth
from odeformer.transformer.caches import Cached
from odeformer.transformer.config import DepthConfig
from odeformer.transformer.field import TransformerField, transformer_field
from odeformer.transformer.state import Y, begin, filled, tokens


class Cache(NamedTuple):
    """What the terms of a model keep of the tokens that it has read.

    Attributes:
      terms: of each term that is decoded with a cache, by name, what it keeps: arrays [G, steps, E,
        B, ...], for each of its evaluations; of attention a `KeyCache`.
      filled: int32 [B], how many tokens of each sample were read.
    """

    terms: Mapping[str, Any]
    filled: jax.Array


def init_cache(config: LMConfig, batch: int, places: int | None = None) -> Cache:
    """Returns the cache of a model that has read nothing.

    Args:
      config: of the model.
      batch: B, number of sequences.
      places: S, the most tokens that a sequence will have; None: the block's size.

    Returns:
      A Cache: keys and values in the dtype of the matrix products, sums in the state's.

    Raises:
      ValueError: a term without cached decoding.
    """
    term_checks.check_decoding(terms.select(config.terms))
    depth, places = config.depth, config.block_size if places is None else places

    # A solver with several stages evaluates a term several times per step, each time from another
    # state; a reversible pair does so for each of its two states.
    evaluations = depth.evaluations(len(config.terms)).tolist()
    caches = {}
    for name, each in zip(config.terms, evaluations, strict=True):
        if isinstance(cached := terms.get(name).decoding, Cached):
            empty = cached.init(config, batch, places)
            caches[name] = _repeated(empty, (depth.groups, depth.fixed_steps, each))

    return Cache(caches, jnp.zeros(batch, jnp.int32))


def _repeated(tree: Any, axes: tuple[int | None, ...]) -> Any:
    """Arrays with axes of these sizes in front, along which they are repeated."""
    return jax.tree.map(lambda x: jnp.tile(x, (*axes, *[1] * x.ndim)), tree)


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
    new = tokens_BC.shape[1]
    places_BC = cache.filled[:, None] + jnp.arange(new, dtype=jnp.int32)[None]

    # Padding may lie beyond the block's end, for which there is no learned position.
    positions_BC = jnp.minimum(places_BC, model.config.block_size - 1)
    y_BCD: Any = model.apply(variables, tokens_BC, positions_BC, method="embed")
    rotation: Any = model.apply(variables, positions_BC, method="rotation")
    y_BCD, kept = _integrate(model.config, variables, y_BCD, cache, rotation)

    caches = {}
    for name, cached in cache.terms.items():
        write: Any = terms.get(name).decoding
        caches[name] = write.write(cached, kept[name], cache.filled, lengths_B)

    return y_BCD, Cache(caches, cache.filled + lengths_B)


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
) -> tuple[Any, dict[str, Any]]:
    """The state after the last group; what terms keep of it, by name, [G, steps, E, B, ...]."""
    depth, field = config.depth, transformer_field(config)

    # LMConfig refuses adaptive steps.
    assert depth.fixed_steps is not None
    times = jnp.asarray(step_times(0.0, depth.length, depth.fixed_steps, y_BCD.dtype))
    weights = weights_over_depth(depth, variables["params"]["depth"]["groups"])

    def group(state, xs):
        scanned, offset, caches = xs
        theta = weights.of_group(scanned, weights.common)

        def params(t: jax.Array) -> Any:
            return theta if weights.at is None else weights.at(theta, t, offset)

        def step(state, xs):
            t0, t1, caches = xs
            step_cache = Cache(caches, cache.filled)
            evaluate, new = _make_evaluate(field, params, offset, step_cache, rotation)
            state = _step(depth, len(field.terms), evaluate, t0=t0, t1=t1, state=state)
            kept = {
                name: jax.tree.map(lambda *each: jnp.stack(each), *evaluations)
                for name, evaluations in new.items()
            }
            return state, kept

        return jax.lax.scan(step, state, (times[:-1], times[1:], caches))

    # The same scan over groups as in the stack, with the cache's part of each group.
    offsets = depth.length * jnp.arange(depth.groups, dtype=y_BCD.dtype)
    state = begin(field.streams, y_BCD)
    state = state if depth.reversible is None else reversible.begin(state)
    state, kept = jax.lax.scan(group, state, (weights.scanned, offsets, cache.terms))
    return tokens(state if depth.reversible is None else state.y), kept


def _step(
    depth: DepthConfig, terms: int, evaluate: Callable[..., Any], t0: Any, t1: Any, state: Any
) -> Any:
    """A step of the state, or of the pair of states."""
    if depth.reversible is None:
        return staged_step(depth.solver, terms, evaluate, t0=t0, t1=t1, y0=state)

    each = solvers.evaluations(depth.solver, terms).tolist()

    def increment(half: int, t0: Any, t1: Any, y: Any) -> Any:
        # The evaluations of the step back follow those of the step forth.
        def evaluate_half(term: int | None, n: int, t: Any, y: Any) -> Any:
            return evaluate(term, n + half * each[term or 0], t, y)

        return reversible.staged_increment(depth.solver, terms, evaluate_half, t0=t0, t1=t1, y0=y)

    return reversible.step(depth.reversible, increment, state, t0, t1)


def _make_evaluate(
    field: TransformerField,
    params: Callable[[jax.Array], Any],
    offset: jax.Array,
    cache: Cache,
    rotation: jax.Array | None,
) -> tuple[Callable[..., Any], dict[str, list[Any]]]:
    """A step's slope for `staged_step`, and the lists to which it adds what the terms keep.

    The parameters are those at a time of the group's own, and the cache is that of one step: of
    each term [E, B, ...].
    """
    # Filled while the step is traced, in the order in which the step evaluates each term.
    new = {name: [] for name in cache.terms}

    def slope(variables: Any, name: str, n: int, t: jax.Array, state: Any) -> Any:
        if name not in cache.terms:
            return field.apply(variables, name, t, state, method="term")

        seen = jax.tree.map(lambda x: x[n], cache.terms[name])
        dy_BCD, kept = field.apply(
            variables,
            name,
            t,
            tokens(state),
            cache=seen,
            filled_B=cache.filled,
            rotation=rotation,
            method="extend",
        )
        new[name].append(kept)
        return filled({Y: dy_BCD}, state)

    def evaluate(term: int | None, n: int, t: jax.Array, state: Any) -> Any:
        variables = {"params": params(t)}
        if term is not None:
            return slope(variables, field.terms[term], n, t + offset, state)

        slopes = [slope(variables, name, n, t + offset, state) for name in field.terms]
        return jax.tree.map(lambda *each: sum(each[1:], each[0]), *slopes)

    return evaluate, new
