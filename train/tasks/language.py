"""Texts, and the token that comes next."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from train.config.data import LanguageDataConfig
from train.config.run import RunConfig
from train.data.text.blocks import Documents, Stream
from train.tasks.task import Arrays, Batch, Inputs, Keys, Metrics, cross_entropy

PADDING_SEGMENT = 0

# exp(710) overflows a float64, for which math.exp raises: a diverged run must still be logged.
_LARGEST_EXPONENT = 700.0

Targets = tuple[jax.Array, jax.Array]  # the next tokens, and which of them count; [B, N] each


class LanguageTask:
    """Prediction of each next token of a block.

    A batch holds 'tokens', 'targets', 'segments' and 'positions' int32 [B, N]; the targets of
    segment 0 are padding and count nowhere.
    """

    unit = "tokens"

    def __init__(self, config: RunConfig, data: Documents | Stream):
        assert isinstance(config.data, LanguageDataConfig)
        self._byte_lengths = np.asarray(data.tokenizer.byte_lengths, np.int32)
        self._is_stream = config.data.packing == "stream"
        self._smoothing = config.optimizer.label_smoothing
        self.units_per_example = data.block_size

    def constants(self) -> dict[str, np.ndarray]:
        """Returns the number of bytes of each token of the vocabulary, [V]."""
        return {"byte_lengths": self._byte_lengths}

    def prepare(self, batch: Batch, keys: Keys, constants: Arrays) -> tuple[Inputs, Targets]:
        """Returns the block unchanged, and the targets."""
        counted = batch["segments"] != PADDING_SEGMENT
        return self.inputs(batch, constants), (batch["targets"], counted)

    def loss(self, logits: jax.Array, targets: Targets) -> tuple[jax.Array, Metrics]:
        """Returns the cross-entropy per token, and accuracy."""
        labels, counted = targets
        losses = cross_entropy(logits, labels, self._smoothing)
        accuracy = jnp.mean(logits.argmax(-1) == labels, where=counted)
        return jnp.mean(losses, where=counted), {"accuracy": accuracy}

    def weight(self, targets: Targets) -> jax.Array:
        """Returns the number of tokens that count."""
        _, counted = targets
        return counted.sum(dtype=jnp.float32)

    def inputs(self, batch: Batch, constants: Arrays) -> Inputs:
        """Returns the tokens and, of packed documents, their segments and positions."""
        # A window of a stream is one segment, with padding at its end only, which no token attends
        # to: the model needs no mask but the causal one.
        if self._is_stream:
            return (batch["tokens"],)

        return batch["tokens"], batch["segments"], batch["positions"]

    def scores(self, logits: jax.Array, batch: Batch, constants: Arrays) -> Metrics:
        """Returns by block the means of loss (nats) and correct, and the tokens and bytes in it."""
        targets, counted = batch["targets"], batch["segments"] != PADDING_SEGMENT
        return {
            "loss": jnp.mean(cross_entropy(logits, targets), axis=-1, where=counted),
            "correct": jnp.mean(logits.argmax(-1) == targets, axis=-1, where=counted),
            "tokens": counted.sum(axis=-1),
            "bytes": jnp.sum(constants["byte_lengths"][targets], axis=-1, where=counted),
        }

    def summarise(self, scores: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns loss (nats per token), accuracy, perplexity and bits per byte of text."""
        # Blocks hold different numbers of tokens, so that a mean over blocks would be another one.
        tokens = scores["tokens"].astype(np.float64)
        nats = float(tokens @ scores["loss"].astype(np.float64))
        correct = float(tokens @ scores["correct"].astype(np.float64))
        size = float(scores["bytes"].sum(dtype=np.float64))

        loss = nats / float(tokens.sum())
        return {
            "loss": loss,
            "accuracy": correct / float(tokens.sum()),
            "perplexity": math.exp(min(loss, _LARGEST_EXPONENT)),
            # Unlike the loss per token, comparable between tokenizers.
            "bits_per_byte": nats / math.log(2) / size,
        }
