"""Which batches a run learns from: not those whose loss or gradient norm is far too large."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from train.config.run import GuardConfig

# Number of batches that a new one is compared with.
WINDOW = 128


@flax.struct.dataclass
class Guard:
    """Statistics of the batches so far; a part of a run's state."""

    recent: jax.Array  # float32 [WINDOW, 2]: loss, gradient norm of the newest accepted batches
    consecutive: jax.Array  # int32: skipped batches since the newest accepted one
    skipped: jax.Array  # int32: skipped batches in all


def init_guard() -> Guard:
    """Returns the statistics before the first batch."""
    return Guard(
        recent=jnp.zeros((WINDOW, 2), jnp.float32),
        consecutive=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
    )


def judge(
    guard: Guard, steps: jax.Array, loss: jax.Array, grad_norm: jax.Array, sigmas: float | None
) -> tuple[jax.Array, Guard]:
    """Returns whether a batch is accepted, and the statistics after it.

    It is if its loss and its gradient's norm are finite and, once WINDOW batches were accepted,

        value <= mean + sigmas * standard deviation

    of the WINDOW newest ones, for both.

    Args:
      guard: the statistics so far.
      steps: int32, number of batches accepted so far.
      loss: of the batch, float32 (nats).
      grad_norm: of the batch's gradient, float32.
      sigmas: the number of standard deviations; None: any finite value is accepted.
    """
    values = jnp.stack([loss, grad_norm])
    accepted = jnp.isfinite(values).all()

    if sigmas is not None:
        bound = guard.recent.mean(axis=0) + sigmas * guard.recent.std(axis=0)

        # Until the window is full it holds zeros.
        accepted &= (steps < WINDOW) | (values <= bound).all()

    # A skipped batch must leave no trace in the window: a single NaN would reject all that follow.
    recent = guard.recent.at[steps % WINDOW].set(values)
    return accepted, Guard(
        recent=jnp.where(accepted, recent, guard.recent),
        consecutive=jnp.where(accepted, 0, guard.consecutive + 1),
        skipped=guard.skipped + (~accepted).astype(jnp.int32),
    )


class SkipMonitor:
    """Reports skipped batches one step late, so that the device never waits for the host.

    While batches are being skipped, and before the run is saved, it waits for the newest step.
    """

    def __init__(self, config: GuardConfig, report: Callable[[int, Mapping[str, Any]], None]):
        """Starts with no batch reported.

        Args:
          config: how many consecutive skipped batches are too many.
          report: called with the step and the metrics of each skipped batch, in order.
        """
        self._config, self._report = config, report
        self._held: tuple[int, Mapping[str, Any]] | None = None
        self._is_first = True
        self._consecutive = 0

    def exceeded(self, step: int, metrics: Mapping[str, Any], wait: bool) -> bool:
        """Returns whether too many batches in a row were skipped.

        Args:
          step: that was dispatched.
          metrics: of that step.
          wait: whether to wait for this step, instead of reading the previous one alone.
        """
        previous, self._held = self._held, (step, metrics)
        if previous is not None:
            self._read(*previous)

        # At first, too: a run may be resumed amid skipped batches, and the batch that is one too
        # many must be noticed at its own step.
        limit = self._config.max_consecutive
        if wait or self._is_first or self._consecutive or limit == 1:
            self._held, self._is_first = None, False
            self._read(step, metrics)

        return self._consecutive >= limit

    def _read(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._consecutive = int(metrics["skipped_in_a_row"])
        if self._consecutive:
            self._report(step, metrics)
