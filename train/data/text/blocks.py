"""The splits of a text set: blocks of tokens, gathered by number."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from train.data.progress import chunks
from train.data.split import Origin, TextOrigin
from train.data.text.packing import pack
from train.data.text.tokenizer import Tokenizer, token_dtype

_CHUNK = 1024  # texts tokenized at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """The tokens of all texts in one array: an `end` before each text, and one after the last.

    Attributes:
      tokens: [T] uint16 or uint32.
      starts: [texts + 1] int64, where the `end` before each text is, and the last `end`.
    """

    tokens: np.ndarray
    starts: np.ndarray


def tokenise(texts: Sequence[str], tokenizer: Tokenizer, name: str = "texts") -> Corpus:
    """Returns the tokens of texts; the progress bar shows the name."""
    end = np.array([tokenizer.end], token_dtype(tokenizer.vocabulary))
    parts, lengths = [], [np.zeros(1, np.int64)]

    for chunk in chunks(len(texts), _CHUNK, f"tokenising {name}"):
        encoded = tokenizer.encode(texts[chunk.start : chunk.stop])

        # Joined chunk by chunk: an array per short text would cost more memory than its tokens.
        parts.append(np.concatenate([part for tokens in encoded for part in (end, tokens)]))
        lengths.append(np.array([1 + len(tokens) for tokens in encoded], np.int64))

    return Corpus(np.concatenate([*parts, end]), np.cumsum(np.concatenate(lengths)))


class Documents:
    """Blocks of whole documents that do not see one another; long ones are cut into pieces.

    A document of tokens t1 ... tn is the sequence of inputs end, t1 ... tn with the targets
    t1 ... tn, end.

    Args:
      corpus: the documents.
      block_size: number of tokens per block.
      tokenizer: that made the corpus.
      origin: the text that the set was read from, of files.
    """

    def __init__(
        self,
        corpus: Corpus,
        block_size: int,
        tokenizer: Tokenizer,
        origin: TextOrigin | None = None,
    ):
        self.block_size, self.tokenizer, self.origin = block_size, tokenizer, origin
        self._tokens = corpus.tokens

        # A sequence longer than a block is cut into pieces, all but the last one of a block's size.
        sequences = np.diff(corpus.starts)
        pieces = -(-sequences // block_size)
        offsets = _ranges(pieces) * block_size
        lengths = np.minimum(block_size, np.repeat(sequences, pieces) - offsets)

        # The memory of packing grows with the size, which may be far larger than all of the text.
        size = min(block_size, int(lengths.sum()))
        packed, self._first = pack(lengths, size)

        # From here on the pieces are in the order of their blocks; `_first` is the first of each.
        self._lengths = lengths[packed].astype(np.int32)
        self._begins = (np.repeat(corpus.starts[:-1], pieces) + offsets)[packed]

        before = np.cumsum(self._lengths, dtype=np.int64) - self._lengths
        before_block = np.repeat(before[self._first[:-1]], np.diff(self._first))
        self._columns = (before - before_block).astype(np.int32)

    def __len__(self) -> int:
        return len(self._first) - 1

    def gather(self, index: np.ndarray, visit: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns blocks. Nothing is random; visits are ignored.

        Args:
          index: [n] blocks to return.
          visit: ignored.

        Returns:
          Of int32 [n, block_size]: tokens; targets, the token after each; segments, 1, 2, ... by
          document, 0 where the block is not filled; positions, from 0 in each segment. And the
          index int32 [n].
        """
        # A block has any number of pieces: what follows has an entry per piece, not per block.
        counts = self._first[index + 1] - self._first[index]
        segments = _ranges(counts)
        pieces = np.repeat(self._first[index], counts) + segments
        rows = np.repeat(np.arange(len(index)), counts)

        # And from here on an entry per token.
        lengths = self._lengths[pieces]
        positions = _ranges(lengths)
        slots = np.repeat(rows * self.block_size + self._columns[pieces], lengths) + positions
        sources = np.repeat(self._begins[pieces], lengths) + positions
        values = {
            "tokens": self._tokens[sources],
            "targets": self._tokens[sources + 1],
            "segments": np.repeat(segments + 1, lengths),
            "positions": positions,
        }

        batch = {name: self._scatter(value, slots, len(index)) for name, value in values.items()}
        return batch | {"index": index.astype(np.int32)}

    def _scatter(self, values: np.ndarray, slots: np.ndarray, n: int) -> np.ndarray:
        """Returns blocks [n, block_size] that hold the values in flat slots, and 0."""
        blocks = np.zeros(n * self.block_size, np.int32)
        blocks[slots] = values
        return blocks.reshape(n, self.block_size)


class Stream:
    """Windows of one long text: all documents, one after the other.

    Window i begins at token i * block_size; in training at random up to a window later, so that
    the windows differ between epochs.

    Args:
      corpus: the documents.
      block_size: number of tokens per window.
      tokenizer: that made the corpus.
      seed: of the beginnings of training windows.
      origin: the text that the set was read from, of files.
    """

    def __init__(
        self,
        corpus: Corpus,
        block_size: int,
        tokenizer: Tokenizer,
        seed: int = 0,
        origin: TextOrigin | None = None,
    ):
        self.block_size, self.tokenizer, self.origin = block_size, tokenizer, origin
        self._tokens, self._seed = corpus.tokens, seed

        # The first `end` is no target, as nothing comes before it.
        self._targets = len(corpus.tokens) - 1

    def __len__(self) -> int:
        return -(-self._targets // self.block_size)

    def gather(self, index: np.ndarray, visit: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns windows.

        Args:
          index: [n] windows to return.
          visit: [n]; a training window is a function of the seed, the visit and the index alone;
            None for the windows that together hold every target once.

        Returns:
          Of int32 [n, block_size]: tokens; targets, the token after each; segments, 1, and 0 after
          the end of the text; positions, from 0. And the index int32 [n].
        """
        starts = index.astype(np.int64) * self.block_size
        if visit is not None:
            jitter = _hash(self._seed, visit, index) % np.uint64(self.block_size)

            # No later than the last full window: padding costs as much time as text.
            starts = starts + jitter.astype(np.int64)
            starts = np.minimum(starts, max(0, self._targets - self.block_size))

        columns = np.arange(self.block_size, dtype=np.int32)
        places = starts[:, None] + np.arange(self.block_size + 1)
        windows = np.take(self._tokens, places, mode="clip").astype(np.int32)

        # Places after the end of the text were clipped; their segment 0 hides what they hold.
        segments = (places[:, :-1] < self._targets).astype(np.int32)
        return {
            "tokens": windows[:, :-1] * segments,
            "targets": windows[:, 1:] * segments,
            "segments": segments,
            "positions": columns * segments,
            "index": index.astype(np.int32),
        }


class Sentences:
    """Labelled texts, each truncated to block_size tokens; an empty one is the token `end`.

    Args:
      corpus: the texts.
      labels: [texts] int32, from 0 to classes - 1.
      classes: number of classes.
      block_size: the most tokens of a text.
      tokenizer: that made the corpus.
      class_names: of all classes; () where the set does not name them.
      origin: the files that the set was read from, of a folder.

    Attributes:
      shortened: number of texts that were truncated.
    """

    def __init__(
        self,
        corpus: Corpus,
        labels: np.ndarray,
        classes: int,
        block_size: int,
        tokenizer: Tokenizer,
        class_names: tuple[str, ...] = (),
        origin: Origin | None = None,
    ):
        self.block_size, self.tokenizer, self.classes = block_size, tokenizer, classes
        self.class_names, self.labels, self.origin = class_names, labels, origin
        self._tokens = corpus.tokens

        lengths = np.diff(corpus.starts) - 1
        self.shortened = int((lengths > block_size).sum())

        # An empty text begins at the `end` of the next one. With the length 1 it holds that token:
        # every row has one to attend to.
        self._begins = corpus.starts[:-1] + 1
        self._lengths = np.clip(lengths, 1, block_size)

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, index: np.ndarray, visit: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns texts. Nothing is random; visits are ignored.

        Args:
          index: [n] texts to return.
          visit: ignored.

        Returns:
          tokens int32 and mask bool [n, block_size], the mask True where there is a token; label
          and index int32 [n].
        """
        columns = np.arange(self.block_size)
        mask = columns < self._lengths[index, None]

        # Places beyond the corpus are clipped, and hidden by the mask like those of the next text.
        places = self._begins[index, None] + columns
        return {
            "tokens": np.take(self._tokens, places, mode="clip").astype(np.int32) * mask,
            "mask": mask,
            "label": self.labels[index].astype(np.int32),
            "index": index.astype(np.int32),
        }


def _ranges(counts: np.ndarray) -> np.ndarray:
    """Returns 0 ... c - 1 for each count c, one after the other: int64 [sum of counts]."""
    ends = np.cumsum(counts, dtype=np.int64)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def _hash(seed: int, visit: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Hashes (seed, visit, index) to uint64 [n] by rounds of SplitMix64 (Steele et al. 2014)."""
    mixed = np.full(len(index), seed, np.uint64)

    # NumPy's generators are seeded one by one; a hash handles the whole batch at once.
    for value in (visit, index):
        mixed = mixed + value.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))

    return mixed
