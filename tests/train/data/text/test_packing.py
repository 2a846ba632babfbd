"""Packing: every sequence in one block, no block too full, and few blocks."""

import itertools
import time

import numpy as np
import pytest

from train.data.text.packing import pack


def best_fit_decreasing(lengths, size):
    """Returns the blocks' fillings, one sequence after the other."""
    filled = []
    for length in sorted(lengths, reverse=True):
        fits = [b for b, used in enumerate(filled) if used + length <= size]
        if fits:
            filled[max(fits, key=lambda b: filled[b])] += length
        else:
            filled.append(length)
    return sorted(filled)


@pytest.mark.parametrize("seed", range(30))
def test_every_sequence_in_one_block(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 80))
    lengths = rng.integers(1, rng.integers(1, size + 1) + 1, rng.integers(0, 300))
    order, starts = pack(lengths, size)
    assert np.sort(order).tolist() == list(range(len(lengths)))
    assert starts[0] == 0 and starts[-1] == len(lengths) and (np.diff(starts) > 0).all()
    filled = [int(lengths[order[a:b]].sum()) for a, b in itertools.pairwise(starts)]
    assert max(filled, default=0) <= size
    assert sorted(filled) == best_fit_decreasing(lengths.tolist(), size)
    again = pack(lengths, size)
    np.testing.assert_array_equal(again[0], order)
    np.testing.assert_array_equal(again[1], starts)


def test_sizes_past_16_bits():
    order, starts = pack(np.array([1, 70_000, 30_000, 65_536]), 100_000)
    blocks = [order[a:b].tolist() for a, b in itertools.pairwise(starts)]
    assert blocks == [[1, 2], [3, 0]]


def test_a_million_sequences_take_seconds():
    lengths = np.random.default_rng(0).geometric(1 / 140, 1_000_000).clip(1, 1024)
    start = time.perf_counter()
    _, starts = pack(lengths, 1024)
    assert time.perf_counter() - start < 10
    assert lengths.sum() / ((len(starts) - 1) * 1024) > 0.999


@pytest.mark.parametrize("lengths", [[0, 3], [3, 9]])
def test_lengths_that_do_not_fit_are_refused(lengths):
    with pytest.raises(ValueError, match="lengths from 1 to size=8 are accepted"):
        pack(np.array(lengths), 8)
