"""Texts, and the token that comes next."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train.config.run import RunConfig
from train.tasks.losses import cross_entropy
from train.tasks.task import Arrays, Batch, Keys, Metrics

PADDING = 0  # its segment


class LanguageTask:
    """Prediction of each next token of a block.

    A batch holds 'tokens', 'targets', 'segments' and 'positions' int32 [B, N]; the targets of
    segment 0 are padding and count nowhere.
    """

    unit = "tokens"

    def __init__(self, config: RunConfig, data: Any):
        self._byte_lengths = np.asarray(data.tokenizer.byte_lengths, np.int32)
        settings: Any = config.data
        self._is_stream = settings.packing == "stream"
        self._smoothing = config.optimizer.label_smoothing
        self.units_per_example = data.block_size

    def constants(self) -> dict[str, np.ndarray]:
        """How many bytes each token of the vocabulary stands for."""
        return {"byte_lengths": self._byte_lengths}

    def prepare(self, batch: Batch, keys: Keys, given: Arrays) -> tuple[tuple[Any, ...], Any]:
        """The block as it is; targets are the next tokens and which of them count."""
        return self.inputs(batch, given), (batch["targets"], batch["segments"] != PADDING)

    def loss(self, logits: jax.Array, targets: Any) -> tuple[jax.Array, Metrics]:
        """Cross-entropy a token, and accuracy."""
        labels, counted = targets
        losses = cross_entropy(logits, labels, self._smoothing)
        return jnp.mean(losses, where=counted), {
            "accuracy": jnp.mean(logits.argmax(-1) == labels, where=counted)
        }

    def weight(self, targets: Any) -> jax.Array:
        """The tokens that count."""
        _, counted = targets
        return counted.sum(dtype=jnp.float32)

    def inputs(self, batch: Batch, given: Arrays) -> tuple[Any, ...]:
        """Tokens, segments and positions.

        A stream's windows are one segment, and their padding is behind it, where no token looks.
        """
        if self._is_stream:
            return (batch["tokens"],)
        return batch["tokens"], batch["segments"], batch["positions"]

    def scores(self, logits: jax.Array, batch: Batch, given: Arrays) -> Metrics:
        """Means over a block's tokens: loss (nats) and correct; its numbers of tokens and bytes."""
        targets, counted = batch["targets"], batch["segments"] != PADDING
        return {
            "loss": jnp.mean(cross_entropy(logits, targets), axis=-1, where=counted),
            "correct": jnp.mean(logits.argmax(-1) == targets, axis=-1, where=counted),
            "tokens": counted.sum(axis=-1),
            "bytes": jnp.sum(given["byte_lengths"][targets], axis=-1, where=counted),
        }

    def summarise(self, scores: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Loss (nats a token), accuracy, perplexity and bits a byte of text, over all tokens."""
        tokens = scores["tokens"].astype(np.float64)
        nats = float(tokens @ scores["loss"].astype(np.float64))
        loss = nats / float(tokens.sum())
        return {
            "loss": loss,
            "accuracy": float(tokens @ scores["correct"].astype(np.float64) / tokens.sum()),
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": nats / math.log(2) / float(scores["bytes"].sum(dtype=np.float64)),
        }
