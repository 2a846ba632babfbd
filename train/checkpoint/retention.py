"""Which checkpoints of a run are kept."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from orbax.checkpoint.checkpoint_managers import PreservationContext, PreservationPolicy

from train.checkpoint.metadata import Damaged, read_metadata
from train.checkpoint.workdir import saved_steps
from train.config.run import BEST, CheckpointConfig


class Retention(PreservationPolicy):
    """Keeps the newest checkpoints, and the best one by a metric."""

    def __init__(self, workdir: epath.Path, config: CheckpointConfig):
        """Reads the metrics of the checkpoints that are there.

        Args:
          workdir: of the run.
          config: how many are kept, and by which metric the best one.
        """
        self._keep, self._best = config.keep, config.best
        self._metrics = scored_steps(workdir, config.best)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the metric of a checkpoint."""
        if self._best is not None and self._best in metrics:
            self._metrics[step] = metrics[self._best]

    def forget(self, step: int) -> None:
        """Drops the metric of a checkpoint that is gone."""
        self._metrics.pop(step, None)

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: PreservationContext
    ) -> Sequence[bool]:
        """Returns for each checkpoint whether it is kept."""
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        kept = {
            *steps[-self._keep :],
            best_step({s: self._metrics.get(s) for s in steps}, self._best),
        }
        return [checkpoint.step in kept for checkpoint in checkpoints]


def best_step(metrics: Mapping[int, float | None], best: str | None) -> int | None:
    """Returns the step of the best checkpoint, the newest of several; None where none was scored.

    Args:
      metrics: the checkpoints' values of the metric, by step.
      best: the metric's name; None: no checkpoint is the best one.
    """
    scored = {step: v for step, v in metrics.items() if v is not None and math.isfinite(v)}
    if best is None or not scored:
        return None
    return max(scored, key=lambda step: (BEST[best] * scored[step], step))


def scored_steps(workdir: epath.Path, best: str | None) -> dict[int, float]:
    """The metric of each checkpoint that was scored and whose record can be read, by step."""
    known = {}
    for step in saved_steps(workdir):
        try:
            metrics = read_metadata(workdir, step).metrics
        except Damaged:
            continue
        if best in metrics:
            known[step] = metrics[best]
    return known
