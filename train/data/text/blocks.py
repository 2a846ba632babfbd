"""The splits of a text set: blocks of tokens, gathered by number."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.progress import track

from train.data.text.packing import pack
from train.data.text.tokenizer import Tokenizer, token_dtype

_CHUNK = 1024  # texts made into tokens at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Texts as tokens, one behind the other, each behind an `end`, with an `end` behind the last.

    Attributes:
      tokens: [T] uint16 or uint32.
      starts: [texts + 1] int64, places of the `end` before each text and of the last one.
    """

    tokens: np.ndarray
    starts: np.ndarray


def tokenise(texts: Sequence[str], tokenizer: Tokenizer, name: str = "texts") -> Corpus:
    """Returns the tokens of texts; the name stands beside the progress bar."""
    end = np.array([tokenizer.end], token_dtype(tokenizer.vocabulary))
    parts, lengths = [], [np.zeros(1, np.int64)]
    bar = Console(stderr=True)
    for start in track(
        range(0, len(texts), _CHUNK),
        f"tokenising {name}",
        console=bar,
        transient=True,
        disable=not bar.is_terminal,
    ):
        encoded = tokenizer.encode(texts[start : start + _CHUNK])
        parts.append(np.concatenate([part for tokens in encoded for part in (end, tokens)]))
        lengths.append(np.array([1 + len(tokens) for tokens in encoded], np.int64))
    return Corpus(np.concatenate([*parts, end]), np.cumsum(np.concatenate(lengths)))


class Documents:
    """Blocks of whole documents that do not see one another; long ones are cut into pieces.

    A document of tokens t1 ... tn is the sequence of inputs end, t1 ... tn with the targets
    t1 ... tn, end.

    Args:
      corpus: the documents.
      block_size: tokens of a block.
      tokenizer: of the corpus.
    """

    def __init__(self, corpus: Corpus, block_size: int, tokenizer: Tokenizer):
        self.block_size, self.tokenizer = block_size, tokenizer
        self._tokens = corpus.tokens
        sequences = np.diff(corpus.starts)
        pieces = -(-sequences // block_size)
        begins = _count(pieces) * block_size
        lengths = np.minimum(block_size, np.repeat(sequences, pieces) - begins)
        # The memory of packing grows with the size, which may be far beyond all of the text.
        size = min(block_size, int(lengths.sum()))
        order, self._first = pack(lengths, size)  # the first piece of each block
        self._lengths = lengths[order].astype(np.int32)
        self._begins = (np.repeat(corpus.starts[:-1], pieces) + begins)[order]
        before = np.cumsum(self._lengths, dtype=np.int64) - self._lengths
        in_block = np.repeat(before[self._first[:-1]], np.diff(self._first))
        self._columns = (before - in_block).astype(np.int32)

    def __len__(self) -> int:
        return len(self._first) - 1

    def gather(self, index: np.ndarray, draw: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns the blocks of that index. Nothing in them is random.

        Args:
          index: [n].
          draw: no part in it.

        Returns:
          Of int32 [n, block_size]: tokens; targets, the token behind each; segments, 1, 2, ... by
          document, 0 where the block is not filled; positions, from 0 in each segment. And the
          index int32 [n].
        """
        counts = self._first[index + 1] - self._first[index]
        segments = _count(counts)
        pieces = np.repeat(self._first[index], counts) + segments
        rows = np.repeat(np.arange(len(index)), counts)
        lengths = self._lengths[pieces]
        positions = _count(lengths)
        to = np.repeat(rows * self.block_size + self._columns[pieces], lengths) + positions
        places = np.repeat(self._begins[pieces], lengths) + positions
        batch = {
            "tokens": self._tokens[places],
            "targets": self._tokens[places + 1],
            "segments": np.repeat(segments + 1, lengths),
            "positions": positions,
        }
        for name, values in batch.items():
            block = np.zeros(len(index) * self.block_size, np.int32)
            block[to] = values
            batch[name] = block.reshape(len(index), self.block_size)
        return batch | {"index": index.astype(np.int32)}


class Stream:
    """Windows of one long text: all documents, one behind the other.

    Window i begins at token i * block_size; in training at random up to a window further, so that
    the epochs see other windows.

    Args:
      corpus: the documents.
      block_size: tokens of a window.
      tokenizer: of the corpus.
      seed: of where training windows begin.
    """

    def __init__(self, corpus: Corpus, block_size: int, tokenizer: Tokenizer, seed: int = 0):
        self.block_size, self.tokenizer = block_size, tokenizer
        self._tokens, self._seed = corpus.tokens, seed
        self._targets = len(corpus.tokens) - 1

    def __len__(self) -> int:
        return -(-self._targets // self.block_size)

    def gather(self, index: np.ndarray, draw: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns the windows of that index.

        Args:
          index: [n].
          draw: [n], the number of the draw of each: a training window is a function of the seed,
            the draw and the index alone; None for the windows that hold every target once.

        Returns:
          Of int32 [n, block_size]: tokens; targets, the token behind each; segments, 1, and 0
          behind the end of the text; positions, from 0. And the index int32 [n].
        """
        starts = index.astype(np.int64) * self.block_size
        if draw is not None:
            jitter = _hash(self._seed, draw, index) % np.uint64(self.block_size)
            starts = starts + jitter.astype(np.int64)
            starts = np.minimum(starts, max(0, self._targets - self.block_size))
        columns = np.arange(self.block_size, dtype=np.int32)
        places = starts[:, None] + np.arange(self.block_size + 1)
        windows = np.take(self._tokens, places, mode="clip").astype(np.int32)
        segments = (places[:, :-1] < self._targets).astype(np.int32)
        return {
            "tokens": windows[:, :-1] * segments,
            "targets": windows[:, 1:] * segments,
            "segments": segments,
            "positions": columns * segments,
            "index": index.astype(np.int32),
        }


class Sentences:
    """Labelled texts, each cut off behind block_size tokens; an empty one is the token `end`.

    Args:
      corpus: the texts.
      labels: [texts] int32, from 0 to classes - 1.
      classes: number of classes.
      block_size: the most tokens of a text.
      tokenizer: of the corpus.
    """

    def __init__(
        self,
        corpus: Corpus,
        labels: np.ndarray,
        classes: int,
        block_size: int,
        tokenizer: Tokenizer,
    ):
        self.block_size, self.tokenizer, self.classes = block_size, tokenizer, classes
        self._tokens, self._labels = corpus.tokens, labels
        self._begins = corpus.starts[:-1] + 1  # of an empty text: the `end` of the next one
        lengths = np.diff(corpus.starts) - 1
        self.shortened = int((lengths > block_size).sum())
        self._lengths = np.clip(lengths, 1, block_size)

    def __len__(self) -> int:
        return len(self._labels)

    def gather(self, index: np.ndarray, draw: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns the texts of that index. Nothing in them is random.

        Args:
          index: [n].
          draw: no part in it.

        Returns:
          tokens int32 and mask bool [n, block_size], the mask True where there is a token; label
          and index int32 [n].
        """
        columns = np.arange(self.block_size)
        mask = columns < self._lengths[index, None]
        places = self._begins[index, None] + columns
        return {
            "tokens": np.take(self._tokens, places, mode="clip").astype(np.int32) * mask,
            "mask": mask,
            "label": self._labels[index].astype(np.int32),
            "index": index.astype(np.int32),
        }


def _count(counts: np.ndarray) -> np.ndarray:
    """Returns 0 ... c - 1 of each count c, one behind the other: int64 [sum of counts]."""
    ends = np.cumsum(counts, dtype=np.int64)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def _hash(seed: int, draw: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Hashes (seed, draw, index) to uint64 [n] by rounds of SplitMix64 (Steele et al. 2014)."""
    mixed = np.full(len(index), seed, np.uint64)
    for value in (draw, index):
        mixed = mixed + value.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed
