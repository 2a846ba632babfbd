"""Measures how fast whole training batches are gathered on the host.

    python -m benchmarks.data
    python -m benchmarks.data --steps=1000 --workers=4

Images in memory: 50,000 random ones of 32x32x3, in batches of 512. Images of varying size: JPEGs of
500x375 pixels, about ImageNet's mean, cropped at random to 224x224. No device takes part. A figure
that misses what is wanted of it is marked with !.
"""

import argparse
import io
import sys
import time
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.arguments import positive
from train.data.images.arrays import Images
from train.data.images.records import Records
from train.data.pipeline import train_batches
from train.data.split import Split

WANTED = 50_000  # images per second, of images in memory
AHEAD_STEPS = 8  # more than are read ahead
MEMORY_BATCH, RECORDS_BATCH = 512, 32


class JPEGs:
    """A data source of photograph-like JPEGs, kept in memory."""

    def __init__(self, images: int, width: int, height: int):
        rng = np.random.default_rng(0)
        self._contents = []
        for _ in range(images):
            coarse = rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
            photo = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            grain = rng.integers(-8, 9, (height, width, 3))
            pixels = (np.asarray(photo, np.int32) + grain).clip(0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
            self._contents.append(buffer.getvalue())

    def __len__(self) -> int:
        return len(self._contents)

    def __getitems__(self, places: list[int]) -> list[dict]:
        return [{"image": self._contents[place], "label": 0} for place in places]


def in_memory() -> Images:
    """Returns a split as large as CIFAR's."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50_000, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, 50_000, np.int32)
    half = (0.5, 0.5, 0.5)
    return Images(images, labels, classes=10, peak=255.0, mean=half, std=half)


def images_per_sec(data: Split, batch_size: int, steps: int, **options: Any) -> float:
    """Returns the rate at which the batches of `steps` steps come, after a few that do not count.

    Args:
      data: the split.
      batch_size: images of a batch.
      steps: batches that are timed.
      **options: repeats and workers, as `train_batches` takes them.
    """
    # Batches are read ahead: as many are ready when the timing starts as when it ends.
    total_steps = AHEAD_STEPS + steps + AHEAD_STEPS
    batches = train_batches(data, batch_size, total_steps, seed=0, **options)
    for _ in range(AHEAD_STEPS):
        next(batches)
    start = time.perf_counter()
    for _ in range(steps):
        next(batches)
    return steps * batch_size / (time.perf_counter() - start)


def main(argv: list[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=positive, default=400, help="batches in memory that are timed"
    )
    parser.add_argument(
        "--workers", type=positive, default=2, help="worker processes that decode JPEGs"
    )
    options = parser.parse_args(argv)
    memory = in_memory()
    records = Records(JPEGs(64, 500, 375), "jpegs", 1, (224, 224), crop_min_area=0.08)
    rows: list[tuple[str, Split, int, int, dict[str, int]]] = [
        ("in memory", memory, MEMORY_BATCH, options.steps, {}),
        ("in memory, each 4 times", memory, MEMORY_BATCH, options.steps, {"repeats": 4}),
        ("JPEG, cropped", records, RECORDS_BATCH, 20, {}),
        ("JPEG, cropped", records, RECORDS_BATCH, 20, {"workers": options.workers}),
    ]
    table = Table(title="batches gathered on the host", caption=f"wanted in memory: {WANTED:,}")
    for column in ("images", "batch", "workers", "images/s"):
        table.add_column(column, justify="left" if column == "images" else "right")
    for name, data, batch_size, steps, settings in rows:
        rate = images_per_sec(data, batch_size, steps, **settings)
        missed = " !" if data is memory and rate < WANTED else ""
        workers = str(settings.get("workers", "a thread"))
        table.add_row(name, str(batch_size), workers, f"{rate:,.0f}{missed}")
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
