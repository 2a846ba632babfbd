"""Sentences and their classes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import f1_score

from odeformer import TextConfig
from train.config.data import SentenceDataConfig
from train.config.run import RunConfig
from train.data.text.blocks import Sentences
from train.tasks.checks import check_equal
from train.tasks.task import (
    Arrays,
    Batch,
    Inputs,
    Keys,
    Metrics,
    cross_entropy,
    mean,
    score_classes,
)


class SentenceTask:
    """Classification of sentences; in training some of their tokens are hidden.

    A batch holds 'tokens' int32 [B, N], 'mask' bool [B, N] (False for padding), 'label', 'index'
    and, in training, 'draw' int32 [B], the visit. Which tokens are hidden is a function of the
    seed, the sentence's index and its visit.
    """

    unit, units_per_example = "sentences", 1

    def __init__(self, config: RunConfig, data: Sentences):
        assert isinstance(config.model, TextConfig) and isinstance(config.data, SentenceDataConfig)
        name, keys = config.data.name, "config.model.classes"
        check_equal(name, "number of classes", data.classes, config.model.classes, keys)

        self._classes = data.classes
        self._token_dropout = config.data.token_dropout
        self._smoothing = config.optimizer.label_smoothing

    def constants(self) -> dict[str, np.ndarray]:
        """Returns no array."""
        return {}

    def prepare(self, batch: Batch, keys: Keys, constants: Arrays) -> tuple[Inputs, jax.Array]:
        """Returns the tokens and the mask of the visible ones; the targets are the labels."""
        tokens, mask = self.inputs(batch, constants)
        if self._token_dropout:
            uniform = jax.vmap(lambda key: jax.random.uniform(key, mask.shape[1:]))
            visible = mask & (uniform(keys.samples) >= self._token_dropout)

            # Where all tokens would be hidden, none is: nothing would be left to classify.
            mask = jnp.where(visible.any(axis=1, keepdims=True), visible, mask)

        return (tokens, mask), batch["label"]

    def loss(self, logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, Metrics]:
        """Returns cross-entropy and accuracy."""
        loss = cross_entropy(logits, targets, self._smoothing).mean()
        return loss, {"accuracy": (logits.argmax(-1) == targets).mean()}

    def weight(self, targets: jax.Array) -> jax.Array:
        """Returns the number of sentences."""
        return jnp.float32(targets.size)

    def inputs(self, batch: Batch, constants: Arrays) -> Inputs:
        """Returns the tokens and their mask."""
        return batch["tokens"], batch["mask"]

    def scores(self, logits: jax.Array, batch: Batch, constants: Arrays) -> Metrics:
        """Returns loss (nats), correct (0 or 1), and the predicted and the true class."""
        return score_classes(logits, batch["label"])

    def summarise(self, scores: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns loss, accuracy and F1: of class 1 out of two, else the mean over the classes."""
        average = "binary" if self._classes == 2 else "macro"

        # A class may be neither predicted nor present, where F1 is 0 / 0. scikit-learn annotates
        # `zero_division` as a string, and accepts 0.
        options: Any = dict(average=average, zero_division=0)
        f1 = f1_score(scores["label"], scores["predicted"], **options)

        return {
            "loss": mean(scores["loss"]),
            "accuracy": mean(scores["correct"]),
            "f1": float(f1),
        }
