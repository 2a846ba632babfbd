"""Which values a row is trained with: those of its trial with the lowest validation loss."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from train.errors import RunError
from train.logs.metrics import read_metrics
from train.study.folders import DIVERGED, is_finished, trial_folder
from train.study.grid import Study, Trial, replica_config
from train.study.rows import Row


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a row's trials came to.

    Attributes:
      values: chosen, by key; empty where nothing is tuned.
      losses: each tried combination's mean validation loss over the trials' seeds, in nats;
        infinite where a trial diverged.
      edges: keys whose chosen value is the least or the largest that was tried.
    """

    values: dict[str, Any]
    losses: tuple[tuple[dict[str, Any], float], ...]
    edges: tuple[str, ...]


def choose(study: Study, row: Row, path: epath.Path) -> Choice | None:
    """Returns a row's choice by the trials in a study's workdir; None if they are not finished."""
    losses: dict[tuple[tuple[str, Any], ...], list[float]] = {}

    for trial in study.trials:
        folder = trial_folder(path, row, trial)
        if not is_finished(folder, replica_config(row, trial.replica, dict(trial.values))):
            return None
        losses.setdefault(trial.values, []).append(validation_loss(folder))

    means = {values: statistics.fmean(each) for values, each in losses.items()}
    return best_of(means, row.name)


def best_of(losses: Mapping[tuple[tuple[str, Any], ...], float], row: str) -> Choice:
    """Returns the choice of the lowest of several losses, by the values that led to them.

    Raises:
      RunError: every trial diverged.
    """
    if not losses:
        return Choice({}, (), ())

    best = min(losses, key=lambda values: losses[values])
    if not math.isfinite(losses[best]):
        raise RunError(
            f"every trial of row {row!r} diverged: give study.tune.grid values that train, such as "
            "smaller learning rates, and another --workdir"
        )

    tried = [(dict(values), loss) for values, loss in losses.items()]
    return Choice(dict(best), tuple(tried), tuple(_edges(dict(best), [v for v, _ in tried])))


def _edges(best: Mapping[str, Any], tried: Sequence[Mapping[str, Any]]) -> list[str]:
    edges = []
    for key, value in best.items():
        axis = {values[key] for values in tried}
        is_ordered = all(isinstance(each, int | float) for each in axis)
        if is_ordered and len(axis) > 1 and value in (min(axis), max(axis)):
            edges.append(key)
    return edges


def validation_loss(folder: epath.Path) -> float:
    """Returns a run's last validation loss, in nats; infinite if it diverged."""
    if (folder / DIVERGED).exists():
        return math.inf

    # A loss that is not finite was written as null.
    losses = [line["val/loss"] for line in read_metrics(folder) if "val/loss" in line]
    return math.inf if losses[-1] is None else losses[-1]


def unfinished_trials(study: Study, path: epath.Path) -> list[tuple[Row, Trial]]:
    """Returns the trials that are still to be run, row by row."""
    return [
        (row, trial)
        for row in study.rows
        for trial in study.trials
        if not is_finished(
            trial_folder(path, row, trial),
            replica_config(row, trial.replica, dict(trial.values)),
        )
    ]
