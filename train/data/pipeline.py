"""The order in which examples are read, and the batches that are made of them."""

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
    """A run's position in its data; the same in every process."""

    step: int  # batches taken
    shuffle: int  # number of times that a rollback has reshuffled the data


BEGINNING = Position(0, 0)


class BatchOrder:
    """The examples of each global batch: a function of the seed, the shuffle and the step alone.

    The examples are reshuffled in each epoch, and epochs follow one another without a gap: every
    example is read once per epoch, whatever the batch size. With repeats a batch holds each of its
    examples that often (repeated augmentation: Hoffer et al. 2020, arXiv 1901.09335; Touvron et
    al. 2021); where they do not divide the batch, the next batch begins with the remaining copies
    of the last example. A process sees its own rows of each batch.
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
        self._batch_size, self._repeats = batch_size, repeats
        self._rows = slice(None) if rows is None else rows

        # NumPy seeds (1,) and (1, 0) alike. With the shuffle last, and left out where it is 0, no
        # two pairs of epoch and shuffle share a seed.
        self._seed = seed
        self._shuffle = (shuffle,) if shuffle else ()

        # The newest epoch and its permutation: a batch rarely needs another one.
        self._newest: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the indices of step `step` (from 0), and the visit of each."""
        entries = step * self._batch_size + np.arange(self._batch_size)
        places, repeat = np.divmod(entries, self._repeats)

        # All rows are computed before this process's own are taken: the batch does not depend on
        # the number of processes.
        places, visit = places[self._rows], (step * self._repeats + repeat)[self._rows]

        # Where an epoch ends inside the batch, the batch holds examples of two permutations.
        index = np.empty(len(places), np.int64)
        epochs = places // self._examples
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            index[rows] = self._permutation(int(epoch))[places[rows] % self._examples]

        return index, visit.astype(np.int32)

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._newest[0]:
            rng = np.random.default_rng((self._seed, epoch, *self._shuffle))
            self._newest = (epoch, rng.permutation(self._examples))
        return self._newest[1]


def check_batch_size(examples: int, batch_size: int, repeats: int = 1) -> None:
    """Raises BadInput where a training batch would hold an example more often than `repeats`.

    Args:
      examples: size of the training split.
      batch_size: examples of a global batch, repeats included.
      repeats: how often a batch holds each of its examples.
    """
    if batch_size > examples * repeats:
        raise BadInput(
            f"config.batch_size={batch_size} is larger than the training split of {examples} "
            "examples: choose a smaller batch"
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
    """Returns an iterator over this process's part of the batches, from `start` to the end.

    Batches are gathered ahead of their use. Each holds what `data.gather` returns, and 'draw'
    int32, the visit of each example: what is random about an entry is a function of the seed, its
    index and its visit, and no two entries share both.

    Args:
      data: the training split.
      batch_size: examples of a global batch, repeats included.
      steps: training steps of the run.
      seed: of the shuffles.
      start: the batches that were taken already, and the shuffle that the others follow.
      rows: rows of each global batch that this process reads; None for all of them.
      repeats: how often a batch holds each of its examples.
      workers: processes that gather, which changes nothing but the time; 0: one thread gathers.

    Raises:
      BadInput: a batch larger than the split.
    """
    check_batch_size(len(data), batch_size, repeats)
    order: Any = BatchOrder(
        len(data), batch_size, steps, seed, rows=rows, repeats=repeats, shuffle=start.shuffle
    )

    def gather(item: tuple[np.ndarray, np.ndarray]) -> Batch:
        index, visit = item
        return data.gather(index, visit) | {"draw": visit}

    # grain's element is a whole batch: example by example it would cost Python time, which limits
    # it to about 20,000 small images per second. And the position in the data is just the step.
    return _read_ahead(grain.MapDataset.source(order)[start.step :].map(gather), workers)


def eval_batch_size(examples: int, batch_size: int, multiple: int) -> int:
    """Returns the size of the equal batches that cover a split with the least padding.

    Args:
      examples: size of the split.
      batch_size: the most examples a batch may hold.
      multiple: what divides a batch: the number of devices it is split over.
    """
    batches = -(-examples // batch_size)
    return -(-examples // (batches * multiple)) * multiple


def eval_batches(
    data: Split, batch_size: int, rows: np.ndarray | None = None, workers: int = 0
) -> Iterator[Batch]:
    """Returns an iterator over batches that cover every example once, in order.

    Args:
      batch_size: examples of a global batch; the last batch is filled up with copies of the split's
        last example.
      rows: rows of each global batch that this process reads; None for all of them.
      workers: processes that gather; 0: one thread gathers.
    """
    own_rows = np.arange(batch_size) if rows is None else rows

    def gather(start: int) -> Batch:
        # All batches have one shape, for which the step is compiled once.
        return data.gather(np.minimum(start + own_rows, len(data) - 1))

    starts = grain.MapDataset.range(0, len(data), batch_size)
    return _read_ahead(starts.map(gather), workers)


def _read_ahead(batches: grain.MapDataset, workers: int) -> Iterator[Batch]:
    """Reads a few batches ahead of their use, in a thread or in worker processes."""
    dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))

    if workers:
        # grain passes absl's flags on to its workers, and refuses flags that are not parsed.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_init_worker)

    # Closed whatever happens: abandoned workers would leave shared memory behind.
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()


def _init_worker(worker: int, workers: int) -> None:
    """Makes a worker process live exactly as long as the trainer."""
    # A signal to the whole process group asks the trainer to stop, which ends its step and saves
    # first, and may wait for a batch until then.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    threading.Thread(target=_exit_with_trainer, daemon=True).start()


def _exit_with_trainer() -> None:
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        trainer.join()

        # A killed trainer closes nothing, and the worker's main thread waits for it in vain.
        os._exit(1)
