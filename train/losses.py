"""Losses, one a sample."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy in nats against labels smoothed towards the uniform distribution.

    Args:
      logits: [B, C].
      labels: [B] int.
      smoothing: the share of probability spread over all classes.

    Returns:
      [B], float32 or the logits' dtype if that is wider.

    Source: Szegedy et al., 'Rethinking the Inception Architecture', 2016, arXiv 1512.00567.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets)
