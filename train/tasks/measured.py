"""A task with more metrics than its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from train.config.tables import METRICS
from train.tasks.checks import check_free
from train.tasks.task import Arrays, Batch, Metrics, Task, mean


class Measured:
    """Another task, whose evaluation has the registered metrics of these names, too."""

    def __init__(self, task: Task, names: Sequence[str]):
        self._task, self._names = task, names

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def scores(self, logits: jax.Array, batch: Batch, constants: Arrays) -> Metrics:
        """Returns the task's scores and each metric's, [B] each."""
        scores = dict(self._task.scores(logits, batch, constants))
        check_free(self._names, scores)
        return scores | {name: METRICS[name](logits, batch) for name in self._names}

    def summarise(self, scores: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns the task's metrics, and the mean of each other one."""
        summary = self._task.summarise(scores)
        return summary | {name: mean(scores[name]) for name in self._names}
