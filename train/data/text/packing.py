"""Packing: many short sequences into few blocks of one size."""

import numpy as np


def pack(lengths: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Packs sequences into blocks, the longest first and each where the least space remains.

    Best-fit decreasing over the histogram of lengths: all sequences of a length and all blocks
    with the same space left are handled at once, so that the work in Python grows with the number
    of distinct lengths and not with that of sequences (Krell, Kosec, Perez, Fitzgibbon 2021, arXiv
    2107.02027). The same lengths give the same blocks.

    Args:
      lengths: [S], of the sequences, each from 1 to size.
      size: of a block.

    Returns:
      order: int64 [S], the sequences, those of a block next to one another.
      starts: int64 [blocks + 1]: block b holds order[starts[b] : starts[b + 1]].

    Raises:
      ValueError: a length that is not from 1 to size.
    """
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= size:
        raise ValueError(
            f"lengths from 1 to size={size} are accepted; some from {lengths.min()} to "
            f"{lengths.max()} were given: cut longer sequences first"
        )
    small = lengths.astype(np.uint16) if size < 1 << 16 else lengths  # sorted much faster
    by_length = np.argsort(small, kind="stable")[::-1]
    values, counts = np.unique(small, return_counts=True)
    blocks, number = _assign(values[::-1].tolist(), counts[::-1].tolist(), size)
    order = by_length[np.argsort(blocks, kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(blocks, minlength=number))])
    return order.astype(np.int64), starts.astype(np.int64)


def _assign(values: list[int], counts: list[int], size: int) -> tuple[np.ndarray, int]:
    """Returns the block of each sequence, the longest first, and the number of blocks."""
    blocks = np.empty(sum(counts), np.int32)
    number = done = 0
    # By the space left in them: ranges of blocks, of which there are few, for what is done with a
    # block is done with its neighbours too.
    ranges: list[list[tuple[int, int]]] = [[] for _ in range(size + 1)]
    is_open = np.zeros(size + 1, bool)
    for length, count in zip(values, counts, strict=True):
        while count:
            space = length + int(is_open[length:].argmax())
            if not is_open[space]:
                space = size
                new = -(-count // (size // length))
                ranges[space].append((number, number + new))
                number += new
            # The best fit is the same block again, until no more of that length fit.
            start, stop = ranges[space].pop()
            each = space // length
            full = min(stop - start, count // each)  # blocks that take as many as fit
            used = start + full
            end = min(used + 1, stop)  # behind the block that takes the rest
            rest = count - full * each if used < stop else 0
            blocks[done : done + full * each] = np.repeat(np.arange(start, used), each)
            blocks[done + full * each : done + full * each + rest] = used
            done += full * each + rest
            count -= full * each + rest
            for left, first, last in (
                (space - each * length, start, used),
                (space - rest * length, used, end),
                (space, end, stop),
            ):
                if first < last:
                    ranges[left].append((first, last))
                    is_open[left] = True
            is_open[space] = bool(ranges[space])
    return blocks, number
