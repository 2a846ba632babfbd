"""The order in which examples are read, and the batches made of them."""

from collections.abc import Iterator

import grain
import numpy as np

from train.data.arrays import Images
from train.errors import BadInput

Batch = dict[str, np.ndarray]


class BatchOrder:
    """The indices of each global batch: a function of the seed and the step alone.

    The examples are shuffled anew each epoch and read one epoch behind the other, so that every
    example is read once an epoch, whatever the batch size. A process sees its contiguous part.
    """

    def __init__(
        self, examples: int, batch_size: int, steps: int, seed: int, process: int, processes: int
    ):
        self._examples, self._batch_size, self._steps, self._seed = (
            examples,
            batch_size,
            steps,
            seed,
        )
        share = batch_size // processes
        self._part = slice(process * share, (process + 1) * share)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns the indices of step `index`."""
        places = (index * self._batch_size + np.arange(self._batch_size))[self._part]
        examples = np.empty(len(places), np.int64)
        for epoch in np.unique(places // self._examples):
            here = places // self._examples == epoch
            examples[here] = self._permutation(int(epoch))[places[here] % self._examples]
        return examples

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch)).permutation(self._examples)


def train_batches(
    data: Images,
    batch_size: int,
    steps: int,
    seed: int,
    start_step: int = 0,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """Yields this process's part of the batches of steps start_step to steps - 1.

    Batches are gathered whole from the arrays, ahead of their use, in one background thread.

    Raises:
      BadInput: a batch larger than the split, or one that the processes do not divide.
    """
    if batch_size > len(data):
        raise BadInput(
            f"config.batch_size={batch_size} is larger than the training split of {len(data)} "
            "examples: take a smaller batch"
        )
    if batch_size % processes:
        raise BadInput(
            f"config.batch_size={batch_size} is not a multiple of the {processes} processes"
        )
    order = BatchOrder(len(data), batch_size, steps, seed, process, processes)
    batches = grain.MapDataset.source(order)[start_step:].map(data.gather)
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(batches.to_iter_dataset(reading))


def eval_batches(data: Images, batch_size: int) -> Iterator[Batch]:
    """Yields batches that cover every example once, in order, each of batch_size.

    The last is filled up with copies of its first example; 'weight' float32 is 1 for an example
    and 0 for a copy.
    """
    for start in range(0, len(data), batch_size):
        index = np.arange(start, min(start + batch_size, len(data)))
        copies = batch_size - len(index)
        batch = data.gather(np.concatenate([index, np.full(copies, start)]))
        yield batch | {"weight": np.repeat([1.0, 0.0], [len(index), copies]).astype(np.float32)}
