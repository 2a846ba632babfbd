"""Which checkpoints of a run are kept."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from orbax.checkpoint.checkpoint_managers import PreservationContext, PreservationPolicy

from train.checkpoint.checks import no_best
from train.checkpoint.metadata import Damaged, read_metadata
from train.checkpoint.workdir import saved_steps
from train.config.run import CheckpointConfig, best_signs
from train.files import as_path


class Retention(PreservationPolicy):
    """Keeps the newest checkpoints, and the best one by a metric."""

    def __init__(self, workdir: epath.Path, config: CheckpointConfig):
        """Reads the metrics of the existing checkpoints."""
        self._keep, self._best = config.keep, config.best
        self._metrics = _read_scores(workdir, config.best)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the metric of a checkpoint."""
        if self._best is not None and self._best in metrics:
            self._metrics[step] = metrics[self._best]

    def forget(self, step: int) -> None:
        """Drops the metric of a checkpoint that was not saved, or was retired."""
        self._metrics.pop(step, None)

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: PreservationContext
    ) -> Sequence[bool]:
        """Returns for each checkpoint whether it is kept."""
        # Sorted: orbax names no order of the checkpoints that it asks about.
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        best = best_step({step: self._metrics.get(step) for step in steps}, self._best)

        kept = {*steps[-self._keep :], best}
        return [checkpoint.step in kept for checkpoint in checkpoints]


def best_step(metrics: Mapping[int, float | None], best: str | None) -> int | None:
    """Returns the step of the best checkpoint, the newest of equals; None if none was scored.

    Args:
      metrics: the checkpoints' values of the metric, by step.
      best: the metric's name; if it is None, no checkpoint is the best one.
    """
    # A comparison with NaN is always false, so that NaN could win.
    scored = {
        step: value for step, value in metrics.items() if value is not None and math.isfinite(value)
    }
    if best is None or not scored:
        return None

    sign = best_signs()[best]
    return max(scored, key=lambda step: (sign * scored[step], step))


def find_best_step(workdir: str | epath.Path, best: str | None) -> int:
    """Returns the step of a run's best checkpoint, by the metrics that are stored with each.

    Args:
      workdir: of the run, which holds a checkpoint.
      best: the metric's name, config.checkpoint.best.

    Raises:
      BadInput: the run keeps no best checkpoint, or none was scored.
    """
    step = best_step(_read_scores(as_path(workdir), best), best)
    if step is None:
        raise no_best(workdir, best)
    return step


def _read_scores(workdir: epath.Path, best: str | None) -> dict[int, float]:
    """The metric of each checkpoint that was scored and whose metadata can be read, by step."""
    scores = {}

    for step in saved_steps(workdir):
        # What is damaged is reported when it is restored.
        try:
            metrics = read_metadata(workdir, step).metrics
        except Damaged:
            continue

        if best in metrics:
            scores[step] = metrics[best]

    return scores
