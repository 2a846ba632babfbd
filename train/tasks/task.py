"""What the trainer asks of a task."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Batch = Mapping[str, jax.Array]
Arrays = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


class Keys(NamedTuple):
    """What is random about a training batch, apart from dropout.

    Attributes:
      batch: a PRNG key of the seed and the step.
      samples: [B] keys, each of the seed, the example and its draw.
    """

    batch: jax.Array
    samples: jax.Array


class Task(Protocol):
    """How a batch becomes inputs of the model, a loss and scores.

    Attributes:
      unit: what throughput counts, e.g. 'images'.
      units_per_example: how many of them an example of a batch is.
    """

    unit: str
    units_per_example: int

    def constants(self) -> dict[str, np.ndarray]:
        """Returns arrays that the methods below are given as `given`.

        They are arguments of the compiled programs, not constants in them, so that runs that differ
        in them alone share a program.
        """
        ...

    def prepare(self, batch: Batch, keys: Keys, given: Arrays) -> tuple[tuple[Any, ...], Any]:
        """Returns the model's inputs and the targets of a training batch."""
        ...

    def loss(self, logits: jax.Array, targets: Any) -> tuple[jax.Array, Metrics]:
        """Returns the scalar loss in nats, and other scalars to log."""
        ...

    def weight(self, targets: Any) -> jax.Array:
        """Returns how many examples or tokens the loss is the mean of, float32 []."""
        ...

    def inputs(self, batch: Batch, given: Arrays) -> tuple[Any, ...]:
        """Returns the model's inputs of an evaluation batch."""
        ...

    def scores(self, logits: jax.Array, batch: Batch, given: Arrays) -> Metrics:
        """Returns the scores of each example of an evaluation batch, [B] each; 'loss' in nats."""
        ...

    def summarise(self, scores: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns the metrics of a split from the scores of its examples, [N] each."""
        ...


def mean(values: np.ndarray) -> float:
    """Returns the mean, summed in float64."""
    return float(values.mean(dtype=np.float64))
