"""Sentences and their classes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import f1_score

from train.config.run import RunConfig
from train.errors import BadInput
from train.tasks.losses import cross_entropy
from train.tasks.task import Arrays, Batch, Keys, Metrics, mean


class SentenceTask:
    """Classification of sentences; in training some of their tokens are hidden.

    A batch holds 'tokens' int32 [B, N], 'mask' bool [B, N] (False for padding), 'label', 'index'
    and, in training, 'draw' int32 [B]. Which tokens are hidden is a function of the seed, the
    sentence's index and its draw.
    """

    unit, units_per_example = "sentences", 1

    def __init__(self, config: RunConfig, data: Any):
        model: Any = config.model
        if data.classes != model.classes:
            raise BadInput(
                f"the number of classes of data set {config.data.name!r} is {data.classes}, the "
                f"model's is {model.classes}: change config.model.classes"
            )
        self._classes = data.classes
        settings: Any = config.data
        self._hidden: float = settings.token_dropout
        self._smoothing = config.optimizer.label_smoothing

    def constants(self) -> dict[str, np.ndarray]:
        """None."""
        return {}

    def prepare(self, batch: Batch, keys: Keys, given: Arrays) -> tuple[tuple[Any, ...], Any]:
        """Tokens and the mask of those that are seen; targets are the labels."""
        tokens, mask = self.inputs(batch, given)
        if self._hidden:
            draw = jax.vmap(lambda key: jax.random.uniform(key, mask.shape[1:]))
            seen = mask & (draw(keys.samples) >= self._hidden)
            mask = jnp.where(seen.any(axis=1, keepdims=True), seen, mask)
        return (tokens, mask), batch["label"]

    def loss(self, logits: jax.Array, targets: Any) -> tuple[jax.Array, Metrics]:
        """Cross-entropy and accuracy."""
        loss = cross_entropy(logits, targets, self._smoothing).mean()
        return loss, {"accuracy": (logits.argmax(-1) == targets).mean()}

    def weight(self, targets: Any) -> jax.Array:
        """The sentences."""
        return jnp.float32(targets.size)

    def inputs(self, batch: Batch, given: Arrays) -> tuple[Any, ...]:
        """Tokens and their mask."""
        return batch["tokens"], batch["mask"]

    def scores(self, logits: jax.Array, batch: Batch, given: Arrays) -> Metrics:
        """Loss (nats), correct (0 or 1), and the classes as predicted and as they are."""
        predicted = logits.argmax(-1)
        return {
            "loss": cross_entropy(logits, batch["label"]),
            "correct": predicted == batch["label"],
            "predicted": predicted,
            "label": batch["label"],
        }

    def summarise(self, scores: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Loss, accuracy and F1: of class 1 where there are two classes, else the classes' mean."""
        kind = "binary" if self._classes == 2 else "macro"
        options: Any = dict(average=kind, zero_division=0)  # a class may be met nowhere
        f1 = f1_score(scores["label"], scores["predicted"], **options)
        return {
            "loss": mean(scores["loss"]),
            "accuracy": mean(scores["correct"]),
            "f1": float(f1),
        }
