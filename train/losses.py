"""Losses, one a sample."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy in nats, - sum_c target_c log softmax(logits)_c.

    Args:
      logits: [B, C].
      targets: [B, C] probabilities, or [B] int labels.

    Returns:
      [B], float32 or the logits' dtype if that is wider.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if targets.ndim == logits.ndim - 1:
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return optax.softmax_cross_entropy(logits, targets)
