"""A split of one blank example: a run's shapes without its data."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from train.config.data import ImageDataConfig, LanguageDataConfig, SentenceDataConfig
from train.config.run import RunConfig
from train.data.images.arrays import Images
from train.data.inputs import ImageInputs
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
    # A task of somebody's own has the kind of data of one of the trainer's.
    return _SPLITS[type(config.data)](config)


def _images(config: RunConfig) -> Split:
    model: Any = config.model
    return blank_images(
        ImageInputs(
            image_shape=model.image_shape,
            is_cropped=False,
            peak=255.0,
            mean=(0.0,) * model.channels,
            std=(1.0,) * model.channels,
            classes=tuple(str(label) for label in range(model.classes)),
        )
    )


def blank_images(inputs: ImageInputs) -> Images:
    """Returns a split of one black image, which is what a run's inputs say in all else."""
    return Images(
        np.zeros((1, *inputs.image_shape), np.uint8),
        np.zeros(1, np.int32),
        classes=len(inputs.classes),
        peak=inputs.peak,
        mean=inputs.mean,
        std=inputs.std,
        class_names=inputs.classes,
        is_cropped=inputs.is_cropped,
    )


def _language(config: RunConfig) -> Split:
    data: Any = config.data
    corpus, size, tokenizer = _blank_text(config)
    if data.packing == "documents":
        return Documents(corpus, size, tokenizer)
    return Stream(corpus, size, tokenizer, seed=0)


def _sentences(config: RunConfig) -> Split:
    model: Any = config.model
    corpus, size, tokenizer = _blank_text(config)
    return Sentences(corpus, np.zeros(1, np.int32), model.classes, size, tokenizer)


def _blank_text(config: RunConfig) -> tuple[Corpus, int, Any]:
    """One document that fills one block exactly, its `end` included; the block's size."""
    model: Any = config.model
    size = model.block_size
    corpus = Corpus(np.zeros(size + 1, np.uint16), np.array([0, size]))
    return corpus, size, BlankTokenizer(model.vocabulary)


_SPLITS: dict[type, Callable[[RunConfig], Split]] = {
    ImageDataConfig: _images,
    LanguageDataConfig: _language,
    SentenceDataConfig: _sentences,
}
