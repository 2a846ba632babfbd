"""Which batches a run learns from: not those whose loss or gradient is out of all proportion."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from train.config.run import GuardConfig

WINDOW = 128  # batches that a new one is compared with


@flax.struct.dataclass
class Guard:
    """What is known of the batches so far; a part of a run's state."""

    recent: jax.Array  # float32 [WINDOW, 2]: loss and gradient norm of the newest ones learnt from
    in_a_row: jax.Array  # int32: batches that were skipped, up to the newest one
    skipped: jax.Array  # int32: batches that were skipped in all


def init_guard() -> Guard:
    """Returns what is known before the first batch."""
    return Guard(
        recent=jnp.zeros((WINDOW, 2), jnp.float32),
        in_a_row=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
    )


def judge(
    guard: Guard, steps: jax.Array, loss: jax.Array, grad_norm: jax.Array, sigmas: float | None
) -> tuple[jax.Array, Guard]:
    """Returns whether a batch is learnt from, and what is known behind it.

    It is if its loss and its gradient's norm are finite and, once WINDOW batches were learnt from,
    neither is greater than

        mean + sigmas * standard deviation

    of the WINDOW newest ones. A batch that is skipped leaves no trace in these.

    Args:
      guard: what is known.
      steps: int32, batches that were learnt from.
      loss: of the batch, float32 (nats).
      grad_norm: of the batch's gradient, float32.
      sigmas: how many standard deviations are too many; None for any number.
    """
    values = jnp.stack([loss, grad_norm])
    accepted = jnp.isfinite(values).all()
    if sigmas is not None:
        bound = guard.recent.mean(axis=0) + sigmas * guard.recent.std(axis=0)
        accepted &= (steps < WINDOW) | (values <= bound).all()
    recent = guard.recent.at[steps % WINDOW].set(values)
    return accepted, Guard(
        recent=jnp.where(accepted, recent, guard.recent),
        in_a_row=jnp.where(accepted, 0, guard.in_a_row + 1),
        skipped=guard.skipped + (~accepted).astype(jnp.int32),
    )


class Watch:
    """Tells of skipped batches: a step late, so that the device never waits for the host.

    It looks at once while batches are being skipped, where the run is about to be saved, and at
    first: a run may go on from amid skipped batches, and one too many is seen at its own step.
    """

    def __init__(self, config: GuardConfig, tell: Callable[[int, Mapping[str, Any]], None]):
        """Has seen nothing yet.

        Args:
          config: how many skipped batches in a row are too many.
          tell: is called with the step and the metrics of each skipped batch, in order.
        """
        self._config, self._tell = config, tell
        self._held: tuple[int, Mapping[str, Any]] | None = None
        self._is_first = True
        self._in_a_row = 0

    def look(self, step: int, metrics: Mapping[str, Any], now: bool) -> bool:
        """Returns whether the batch of this step was skipped, and one too many.

        Args:
          step: that was dispatched.
          metrics: of it.
          now: whether the step itself is waited for.
        """
        before, self._held = self._held, (step, metrics)
        if before is not None:
            self._read(*before)
        if now or self._is_first or self._in_a_row or self._config.in_a_row == 1:
            self._held, self._is_first = None, False
            self._read(step, metrics)
        return self._in_a_row >= self._config.in_a_row

    def _read(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._in_a_row = int(metrics["skipped_in_a_row"])
        if self._in_a_row:
            self._tell(step, metrics)
