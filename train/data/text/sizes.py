"""Sizes of a model of labelled texts that follow from the texts."""

import re
from collections.abc import Sequence

import numpy as np

from train.data.folders.listing import LabelledFile
from train.data.text.labelled import as_text
from train.data.text.sources import load_tokenizer
from train.data.text.tokenizer import Tokenizer, train_bpe
from train.data.text.tokenizer_checks import LEAST_BPE

# Texts that are looked at, and characters of each; the others are taken to be alike.
_SAMPLE, _CHARACTERS = 1000, 4000

_MOST_WORDS = 8000
_BLOCKS = (16, 32, 64, 128, 256)
_COVERED = 0.95  # of the texts are not truncated, unless the largest block is too short


def find_text_sizes(
    files: Sequence[LabelledFile], tokenizer_name: str, vocabulary: int | None
) -> tuple[int, int]:
    """Returns the vocabulary and the block size that suit training texts.

    Args:
      files: those to train on; the ones that cannot be read are reported when all are read.
      tokenizer_name: config.data.tokenizer.
      vocabulary: that is given; None if it is to be found.

    Raises:
      BadInput: a tokenizer that cannot be read.
    """
    texts = _sample(files)
    tokenizer = load_tokenizer(tokenizer_name) or _make_bpe(texts, vocabulary)

    lengths = [len(tokens) for tokens in tokenizer.encode(texts)] or [0]
    covered = float(np.quantile(lengths, _COVERED))
    block = next((size for size in _BLOCKS if size >= covered), _BLOCKS[-1])
    return tokenizer.vocabulary, block


def _sample(files: Sequence[LabelledFile]) -> list[str]:
    texts = []
    for file in files[:: max(1, -(-len(files) // _SAMPLE))]:
        try:
            texts.append(as_text(file.read())[:_CHARACTERS])
        except (OSError, ValueError):
            continue
    return texts


def _make_bpe(texts: Sequence[str], vocabulary: int | None) -> Tokenizer:
    # Each word ends as a token of its own, unless the encoding stops before. Half of them leaves
    # room for the texts that are held out, so that those to train on have enough.
    words = set(re.findall(r"[^\W\d_]{2,}", "\n".join(texts)))
    most = LEAST_BPE + min(len(words) // 2, _MOST_WORDS)
    return train_bpe(texts, min(vocabulary or most, most))
