"""Packing: many short sequences into few blocks of one size."""

import numpy as np

from train.data.text.checks import check_lengths


def pack(lengths: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Packs sequences into blocks, the longest first and each where the least space remains.

    Best-fit decreasing over the histogram of lengths: all sequences of a length and all blocks
    with the same space left are handled at once, so that the work in Python grows with the number
    of distinct lengths and not with that of sequences (Krell, Kosec, Perez, Fitzgibbon 2021, arXiv
    2107.02027). The same lengths give the same blocks.

    Args:
      lengths: [S] of the sequences, each from 1 to size.
      size: of a block.

    Returns:
      packed: int64 [S], the numbers of the sequences, those of one block next to one another.
      starts: int64 [blocks + 1]: block b holds packed[starts[b] : starts[b + 1]].

    Raises:
      ValueError: a length that is not from 1 to size.
    """
    check_lengths(lengths, size)

    # NumPy sorts integers of 16 bits by radix, which is much faster.
    small = lengths.astype(np.uint16) if size < 1 << 16 else lengths
    by_length = np.argsort(small, kind="stable")[::-1]

    values, counts = np.unique(small, return_counts=True)
    blocks, opened = _assign(values[::-1].tolist(), counts[::-1].tolist(), size)

    packed = by_length[np.argsort(blocks, kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(blocks, minlength=opened))])
    return packed.astype(np.int64), starts.astype(np.int64)


def _assign(values: list[int], counts: list[int], size: int) -> tuple[np.ndarray, int]:
    """Returns the block of each sequence, the longest first, and the number of blocks."""
    blocks = np.empty(sum(counts), np.int32)
    opened = placed = 0

    # The blocks by the space left in them, as ranges of numbers. What is done with a block is done
    # with its neighbours too, so that there are few ranges.
    ranges: list[list[tuple[int, int]]] = [[] for _ in range(size + 1)]
    has_blocks = np.zeros(size + 1, bool)

    for length, count in zip(values, counts, strict=True):
        while count:
            # The least space that is enough; argmax is 0 where there is none.
            space = length + int(has_blocks[length:].argmax())
            if not has_blocks[space]:
                space = size
                new = -(-count // (size // length))
                ranges[space].append((opened, opened + new))
                opened += new

            # A block that has taken one sequence is the best fit for the next, as its space is now
            # the least: each block is filled until no more of that length fit.
            start, stop = ranges[space].pop()
            per_block = space // length
            full = min(stop - start, count // per_block)
            first_partial = start + full

            # The next block of the range, if there is one, takes what remains.
            end = min(first_partial + 1, stop)
            rest = count - full * per_block if first_partial < stop else 0

            last_full = placed + full * per_block
            blocks[placed:last_full] = np.repeat(np.arange(start, first_partial), per_block)
            blocks[last_full : last_full + rest] = first_partial
            placed = last_full + rest
            count -= full * per_block + rest

            # The range falls into three, with less space, some of it less, and as much as before.
            for left, first, last in (
                (space - per_block * length, start, first_partial),
                (space - rest * length, first_partial, end),
                (space, end, stop),
            ):
                if first < last:
                    ranges[left].append((first, last))
                    has_blocks[left] = True
            has_blocks[space] = bool(ranges[space])

    return blocks, opened
