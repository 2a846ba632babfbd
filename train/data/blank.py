"""A split of one blank example: a run's shapes without its data."""

import dataclasses
from typing import Any

import numpy as np

from odeformer import ViTConfig
from train.config.data import LanguageDataConfig
from train.config.run import RunConfig
from train.data.images.arrays import Images
from train.data.split import Split
from train.data.text.blocks import Corpus, Documents, Sentences, Stream


@dataclasses.dataclass(frozen=True)
class BlankTokenizer:
    """A tokenizer's numbers without its words: token 0 ends a text, each other is one byte."""

    vocabulary: int
    end: int = 0

    @property
    def byte_lengths(self) -> np.ndarray:
        """Number of bytes of each token, int32 [vocabulary]."""
        return (np.arange(self.vocabulary) != self.end).astype(np.int32)


def blank_split(config: RunConfig) -> Split:
    """Returns a split whose batches have the shapes and dtypes of a run's, without its data."""
    if isinstance(config.model, ViTConfig):
        return _blank_images(config.model)
    return _blank_text(config)


def _blank_images(model: ViTConfig) -> Images:
    return Images(
        np.zeros((1, *model.image_shape), np.uint8),
        np.zeros(1, np.int32),
        classes=model.classes,
        peak=255.0,
        mean=(0.0,) * model.channels,
        std=(1.0,) * model.channels,
    )


def _blank_text(config: RunConfig) -> Split:
    model: Any = config.model
    data: Any = config.data
    tokenizer: Any = BlankTokenizer(model.vocabulary)
    size = model.block_size

    # One document that fills one block exactly, its `end` included.
    corpus = Corpus(np.zeros(size + 1, np.uint16), np.array([0, size]))

    if not isinstance(data, LanguageDataConfig):
        return Sentences(corpus, np.zeros(1, np.int32), model.classes, size, tokenizer)
    if data.packing == "documents":
        return Documents(corpus, size, tokenizer)
    return Stream(corpus, size, tokenizer, seed=0)
