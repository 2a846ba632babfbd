"""The order in which examples are read, and the batches made of them."""

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from train.data.split import Split
from train.errors import BadInput

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run is in its data; the same in every process."""

    step: int  # batches that were taken
    shuffle: int  # how often a rollback has shuffled the data again


BEGINNING = Position(0, 0)


class BatchOrder:
    """The examples of each global batch: a function of the seed, the shuffle and the step alone.

    The examples are shuffled again each epoch and read one epoch after the other, so that every
    example is read once per epoch, whatever the batch size. With repeats a batch holds each of its
    examples that often (repeated augmentation: Hoffer et al. 2020, arXiv 1901.09335; Touvron et
    al. 2021); where they do not divide the batch, the next one begins with the rest of its last
    example's. A process sees its own rows of each.
    """

    def __init__(
        self,
        examples: int,
        batch_size: int,
        steps: int,
        seed: int,
        rows: np.ndarray | None = None,
        repeats: int = 1,
        shuffle: int = 0,
    ):
        self._examples, self._steps = examples, steps
        self._seed = seed
        self._shuffle = (shuffle,) if shuffle else ()  # last, as numpy takes (1,) for (1, 0)
        self._batch_size, self._repeats = batch_size, repeats
        self._rows = slice(None) if rows is None else rows

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the indices of step `step` (from 0), and the number of the draw of each."""
        entries = step * self._batch_size + np.arange(self._batch_size)
        places, repeat = np.divmod(entries, self._repeats)
        places, draw = places[self._rows], (step * self._repeats + repeat)[self._rows]
        examples = np.empty(len(places), np.int64)
        for epoch in np.unique(places // self._examples):
            here = places // self._examples == epoch
            examples[here] = self._permutation(int(epoch))[places[here] % self._examples]
        return examples, draw.astype(np.int32)

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._kept[0]:
            stream = np.random.default_rng((self._seed, epoch, *self._shuffle))
            self._kept = (epoch, stream.permutation(self._examples))
        return self._kept[1]

    _kept: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))  # the newest epoch's order


def check_batch_size(examples: int, batch_size: int, repeats: int = 1) -> None:
    """Raises BadInput where a training batch would hold an example more often than `repeats`.

    Args:
      examples: of the training split.
      batch_size: examples of a global batch, repeats included.
      repeats: how often a batch holds each of its examples.
    """
    if batch_size > examples * repeats:
        raise BadInput(
            f"config.batch_size={batch_size} is larger than the training split of {examples} "
            "examples: take a smaller batch"
        )


def train_batches(
    data: Split,
    batch_size: int,
    steps: int,
    seed: int,
    start: Position = BEGINNING,
    rows: np.ndarray | None = None,
    repeats: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """Returns an iterator over this process's part of the batches from `start` to the last one.

    Batches are gathered whole, ahead of their use: in one background thread, or in worker
    processes, which changes nothing but the time. Each holds what
    `data.gather` returns, and 'draw' int32, the number of the draw: what is random about an
    example is a function of the seed, its index and its draw, which no two entries share.

    Args:
      data: the split.
      batch_size: examples of a global batch, repeats included.
      steps: training steps of the run.
      seed: of the order.
      start: which of them were taken already, and in what order the others come.
      rows: of each batch, those that this process reads; None for all of them.
      repeats: how often a batch holds each of its examples.
      workers: processes that gather; 0: none, a thread does.

    Raises:
      BadInput: a batch larger than the split.
    """
    check_batch_size(len(data), batch_size, repeats)
    order: Any = BatchOrder(len(data), batch_size, steps, seed, rows, repeats, start.shuffle)

    def gather(item: tuple[np.ndarray, np.ndarray]) -> Batch:
        index, draw = item
        return data.gather(index, draw) | {"draw": draw}

    return _read_ahead(grain.MapDataset.source(order)[start.step :].map(gather), workers)


def eval_batch_size(examples: int, batch_size: int, multiple: int) -> int:
    """Returns the size of the equal batches that cover a split with the least filling.

    Args:
      examples: of the split.
      batch_size: the most examples a batch may hold.
      multiple: what divides a batch: the devices it is split over.
    """
    batches = -(-examples // batch_size)
    return -(-examples // (batches * multiple)) * multiple


def eval_batches(
    data: Split, batch_size: int, rows: np.ndarray | None = None, workers: int = 0
) -> Iterator[Batch]:
    """Returns an iterator over batches that cover every example once, in order.

    Args:
      data: the split.
      batch_size: examples of a batch over all processes; the last batch is filled up with copies of
        the split's last example.
      rows: of each batch, those that this process reads; None for all of them.
      workers: processes that gather; 0: none, a thread does.
    """
    mine = np.arange(batch_size) if rows is None else rows

    def gather(start: int) -> Batch:
        places = start + mine
        return data.gather(np.minimum(places, len(data) - 1))

    starts = grain.MapDataset.range(0, len(data), batch_size)
    return _read_ahead(starts.map(gather), workers)


def _read_ahead(batches: grain.MapDataset, workers: int) -> Iterator[Batch]:
    """Reads in a thread, or in worker processes, a few batches ahead of their use."""
    reading = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    if workers:
        if not flags.FLAGS.is_parsed():  # grain hands its workers absl's flags
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers)
        reading = reading.mp_prefetch(options, worker_init_fn=_live_and_die_with_the_trainer)
    iterator = iter(reading)
    try:
        yield from iterator
    finally:
        iterator.close()  # else workers leave shared memory behind


def _live_and_die_with_the_trainer(worker: int, workers: int) -> None:
    """Keeps a worker at work where a signal to the whole group asks the trainer to stop.

    And ends it where the trainer was killed, which it would not notice.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_die_with_the_trainer, daemon=True).start()


def _die_with_the_trainer() -> None:
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        trainer.join()
        os._exit(1)
