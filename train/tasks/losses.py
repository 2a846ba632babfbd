"""Losses, one a sample."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, targets: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy in nats, - sum_c target_c log softmax(logits)_c.

    Args:
      logits: [..., C].
      targets: [..., C] probabilities, or [...] int labels.
      smoothing: part of each label that is spread evenly over the classes; labels only.

    Returns:
      [...], float32 or the logits' dtype if that is wider.

    Source: Szegedy et al., 'Rethinking the Inception Architecture', 2016, arXiv 1512.00567
    (smoothing).
    """
    logits = logits.astype(logits.dtype if logits.dtype == jnp.float64 else jnp.float32)
    if targets.ndim == logits.ndim - 1:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        if smoothing:
            even = -jax.nn.log_softmax(logits).mean(axis=-1)
            losses = (1 - smoothing) * losses + smoothing * even
        return losses
    return optax.softmax_cross_entropy(logits, targets)
