"""What the trainer asks of a task, and what tasks share."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

Batch = Mapping[str, jax.Array]
Arrays = Mapping[str, jax.Array]
Inputs = tuple[jax.Array, ...]
Metrics = dict[str, jax.Array]


class Keys(NamedTuple):
    """The random keys of a training batch, those of dropout excepted.

    Attributes:
      batch: a PRNG key, derived from the seed and the step.
      samples: [B] keys, each derived from the seed, the example's index and its visit, a number
        that is another one each time the example is used.
    """

    batch: jax.Array
    samples: jax.Array


class Task(Protocol):
    """How a batch becomes inputs of the model, a loss and scores.

    Attributes:
      unit: what throughput counts, e.g. 'images'.
      units_per_example: number of units in one example of a batch.
    """

    unit: str
    units_per_example: int

    # Arguments of the compiled programs, not constants inside them, so that runs that differ only
    # in these arrays share a program.
    def constants(self) -> dict[str, np.ndarray]:
        """Returns the arrays that the methods below take as `constants`."""
        ...

    def prepare(self, batch: Batch, keys: Keys, constants: Arrays) -> tuple[Inputs, Any]:
        """Returns the model's inputs and the targets of a training batch."""
        ...

    def loss(self, logits: jax.Array, targets: Any) -> tuple[jax.Array, Metrics]:
        """Returns the scalar loss in nats, and other scalars to log."""
        ...

    def weight(self, targets: Any) -> jax.Array:
        """Returns the number of examples or tokens that the loss is the mean of, float32 []."""
        ...

    def inputs(self, batch: Batch, constants: Arrays) -> Inputs:
        """Returns the model's inputs of an evaluation batch."""
        ...

    def scores(self, logits: jax.Array, batch: Batch, constants: Arrays) -> Metrics:
        """Returns scores by example, [B] each, of an evaluation batch; 'loss' in nats."""
        ...

    def summarise(self, scores: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns the metrics of a split from the scores of its examples, [N] each."""
        ...


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


def score_classes(logits: jax.Array, labels: jax.Array) -> Metrics:
    """Returns loss (nats), correct (0 or 1), and the predicted and the true class, [B] each."""
    predicted = logits.argmax(-1)
    return {
        "loss": cross_entropy(logits, labels),
        "correct": predicted == labels,
        "predicted": predicted,
        "label": labels,
    }


def mean(values: np.ndarray) -> float:
    """Returns the mean."""
    # float32 counts exactly up to 2^24 only, and splits may hold more examples than that.
    return float(values.mean(dtype=np.float64))
