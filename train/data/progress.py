"""The progress bar over a split that is read in chunks."""

from collections.abc import Iterator

from rich.console import Console
from rich.progress import track


def chunks(total: int, size: int, description: str) -> Iterator[range]:
    """Yields the indices below `total`, `size` at a time, with a progress bar on a terminal."""
    # On standard error, and only on a terminal: a log file would fill with its frames.
    console = Console(stderr=True)
    starts = track(
        range(0, total, size),
        description,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )

    for start in starts:
        yield range(start, min(start + size, total))
