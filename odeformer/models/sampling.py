"""Samples a token from a model's logits: temperature, the k best, the best up to a probability.

Arrays carry their axes in their names: B batch, V vocabulary.
"""

import jax
import jax.numpy as jnp


def sample(
    key: jax.Array,
    logits_BV: jax.Array,
    temperature: float | jax.Array = 1.0,
    top_k: int | jax.Array | None = None,
    top_p: float | jax.Array | None = None,
) -> jax.Array:
    """Samples a token of each row: temperature first, then the k best, then the best up to p.

    Args:
      key: a PRNG key; a row's sample depends on the key, the row's index and its logits only.
      logits_BV: [B, V] float32 or float64.
      temperature: 0 or more; 0 takes the best token.
      top_k: 1 or more: keeps the k best; None: all.
      top_p: in (0, 1]: keeps the fewest best whose probability, among those that top_k keeps,
        reaches p; None: all.

    Returns:
      int32 [B].
    """
    best_B = jnp.argmax(logits_BV, axis=-1)

    # One key per row, so that other rows of the batch change nothing.
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(logits_BV)))

    # After the subtraction the best is 0, which no small temperature takes to infinity.
    scaled_BV = logits_BV - logits_BV.max(axis=-1, keepdims=True)
    scaled_BV /= jnp.where(temperature > 0, temperature, 1.0)

    # Without limits the rows need no sorting.
    if top_k is None and top_p is None:
        sampled_B = jax.vmap(jax.random.categorical)(keys_B, scaled_BV)
    else:
        sampled_B = _sample_best(keys_B, scaled_BV, top_k, top_p)

    # Both branches are computed: the temperature is traced, and one program serves all of them.
    return jnp.where(temperature > 0, sampled_B, best_B).astype(jnp.int32)


def _sample_best(
    keys_B: jax.Array,
    logits_BV: jax.Array,
    top_k: int | jax.Array | None,
    top_p: float | jax.Array | None,
) -> jax.Array:
    """Samples among the best tokens of each row, by their ranks."""
    tokens_BV = jnp.argsort(logits_BV, axis=-1, descending=True)
    ranked_BV = jnp.take_along_axis(logits_BV, tokens_BV, axis=-1)

    # A comparison of ranks, as a traced k cannot be the size of an array.
    if top_k is not None:
        ranked_BV = jnp.where(jnp.arange(ranked_BV.shape[-1]) < top_k, ranked_BV, -jnp.inf)

    # The token that reaches p is kept: what counts is the probability of those better than it.
    if top_p is not None:
        reached_BV = jnp.cumsum(jax.nn.softmax(ranked_BV), axis=-1)
        better_BV = jnp.pad(reached_BV[:, :-1], ((0, 0), (1, 0)))
        ranked_BV = jnp.where(better_BV < top_p, ranked_BV, -jnp.inf)

    ranks_B = jax.vmap(jax.random.categorical)(keys_B, ranked_BV)
    return jnp.take_along_axis(tokens_BV, ranks_B[:, None], axis=-1)[:, 0]
