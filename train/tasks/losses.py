"""Losses by sample."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, targets: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Returns the cross-entropy in nats, - sum_c target_c log softmax(logits)_c.

    Args:
      logits: [..., C].
      targets: [..., C] probabilities, or [...] int labels.
      smoothing: fraction of each label that is distributed evenly over the classes; labels only.

    Returns:
      [...], float32 or the logits' dtype if that is wider.

    Source: Szegedy et al., 'Rethinking the Inception Architecture', 2016, arXiv 1512.00567
    (smoothing).
    """
    # bfloat16 has 8 significant bits, too few for a sum of exponentials over all classes.
    logits = logits.astype(logits.dtype if logits.dtype == jnp.float64 else jnp.float32)
    if targets.ndim == logits.ndim:
        return optax.softmax_cross_entropy(logits, targets)

    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    if smoothing:
        # The even part of the target needs the mean over classes alone: no distribution [..., C]
        # is made for each token, which would be as large as the logits.
        even = -jax.nn.log_softmax(logits).mean(axis=-1)
        losses = (1 - smoothing) * losses + smoothing * even

    return losses
