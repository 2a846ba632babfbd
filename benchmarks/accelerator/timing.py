"""Times steps on a device: warm, several at a time, medians."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

BLOCKS = 5  # of steps, each timed as a whole
MOST_STEPS = 50  # of a block


class Timing(NamedTuple):
    """Milliseconds of a step: the median block's, and the fastest and the slowest one's."""

    ms: float
    fastest_ms: float
    slowest_ms: float


def time_steps(advance: Callable[[], None], wait: Callable[[], None], secs: float) -> Timing:
    """Times a step that is dispatched without being waited for.

    Args:
      advance: dispatches one step.
      wait: returns when every step so far is done.
      secs: about how long all blocks together take.
    """
    for _ in range(2):  # what is allocated or chosen at first does not count
        advance()
    wait()
    start = time.perf_counter()
    advance()
    wait()
    once = time.perf_counter() - start

    steps = max(1, min(MOST_STEPS, int(secs / BLOCKS / once)))
    blocks = []
    for _ in range(BLOCKS):
        start = time.perf_counter()
        for _ in range(steps):
            advance()
        wait()
        blocks.append(1e3 * (time.perf_counter() - start) / steps)
    return Timing(statistics.median(blocks), min(blocks), max(blocks))
