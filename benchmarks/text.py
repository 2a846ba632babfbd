"""Measures how fast whole training batches of tokens are gathered on the host.

    python -m benchmarks.text
    python -m benchmarks.text --steps=1000

Random documents, 8 million bytes in all, in blocks of 256: as one stream, and packed. No device
takes part. A figure that misses what is wanted of it is marked with !.
"""

import argparse
import sys
import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.arguments import positive
from benchmarks.data import AHEAD_STEPS
from train.data.pipeline import train_batches
from train.data.text.blocks import Documents, Stream, tokenise
from train.data.text.tokenizer import ByteTokenizer

WANTED = 4_000_000  # tokens per second
BLOCK_SIZE = 256
BATCHES = (64, 512)


def random_documents() -> list[str]:
    """Returns documents whose lengths are spread as those of prose are."""
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(5, 1, 34_000).astype(int) + 1
    letters = rng.integers(97, 123, lengths.sum(), np.uint8).tobytes().decode()
    ends = np.cumsum(lengths)
    return [letters[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def tokens_per_sec(data: Any, batch_size: int, steps: int) -> float:
    """Returns the rate at which the batches of `steps` steps come, filling included.

    Args:
      data: the split.
      batch_size: blocks of a batch.
      steps: batches that are timed.
    """
    # Batches are read ahead: as many are ready when the timing starts as when it ends.
    batches = train_batches(data, batch_size, AHEAD_STEPS + steps + AHEAD_STEPS, seed=0)
    for _ in range(AHEAD_STEPS):
        next(batches)
    start = time.perf_counter()
    for _ in range(steps):
        next(batches)
    return steps * batch_size * data.block_size / (time.perf_counter() - start)


def main(argv: list[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=positive, default=300, help="batches that are timed")
    options = parser.parse_args(argv)
    tokenizer = ByteTokenizer()
    corpus = tokenise(random_documents(), tokenizer)
    splits = {
        "stream": Stream(corpus, BLOCK_SIZE, tokenizer),
        "documents": Documents(corpus, BLOCK_SIZE, tokenizer),
    }
    table = Table(
        title=f"blocks of {BLOCK_SIZE} bytes gathered on the host",
        caption=f"wanted: {WANTED:,} tokens/s",
    )
    for column in ("packing", "batch", "tokens/s"):
        table.add_column(column, justify="left" if column == "packing" else "right")
    for name, data in splits.items():
        for batch_size in BATCHES:
            rate = tokens_per_sec(data, batch_size, options.steps)
            missed = " !" if rate < WANTED else ""
            table.add_row(name, str(batch_size), f"{rate:,.0f}{missed}")
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
