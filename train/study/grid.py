"""A study: rows of a grid, each trained once per fold and seed, and the claims they test."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from train.config.border import flatten, from_config_dict, to_dict
from train.config.data import LanguageDataConfig
from train.config.run import RunConfig
from train.config.study import SEEDS_PER_FOLD, StudyConfig, read_study
from train.errors import BadInput, collecting, refuse
from train.study.checks import (
    check_contrast,
    check_folds,
    check_keys,
    check_metric,
    check_names,
    check_tuning,
)
from train.study.claims import Claim, find_claims
from train.study.rows import Row, grid_rows, matched_rows


@dataclasses.dataclass(frozen=True)
class Replica:
    """One training of a row.

    Attributes:
      fold: the fold that is tested on in cross-validation; None where the test split is fixed.
      seed: one of the study's seeds.
      steps: to train for; None for those of the row's config.
    """

    fold: int | None
    seed: int
    steps: int | None = None

    @property
    def slug(self) -> str:
        """The name of the replica's folder."""
        parts = {"steps": self.steps, "fold": self.fold, "seed": self.seed}
        return "_".join(f"{name}{n}" for name, n in parts.items() if n is not None)

    @property
    def run_seed(self) -> int:
        """The run's seed: no two replicas of one length share first weights or order of data."""
        return self.seed if self.fold is None else SEEDS_PER_FOLD * self.seed + self.fold


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training by which a row's own values are chosen.

    Attributes:
      values: to try, by key, as (('optimizer.learning_rate', 1e-3),).
      replica: its fold, seed and steps.
    """

    values: tuple[tuple[str, Any], ...]
    replica: Replica

    @property
    def slug(self) -> str:
        """The name of the trial's folder."""
        values = (f"{key.rpartition('.')[2]}{value}" for key, value in self.values)
        return "_".join([*values, self.replica.slug])


@dataclasses.dataclass(frozen=True)
class Study:
    """The rows and replicas of a study; every row has every replica and every trial.

    Attributes:
      rows: of the grid, then those matched to them.
      replicas: length by length.
      trials: by which each row's own values are chosen; empty where nothing is tuned.
      claims: the family of contrasts.
      settings: as the study's file and the flags give them.
      metric: what rows are compared by.
    """

    rows: tuple[Row, ...]
    replicas: tuple[Replica, ...]
    trials: tuple[Trial, ...]
    claims: tuple[Claim, ...]
    settings: StudyConfig
    metric: str


def from_study_dict(
    study: Any, changes: Mapping[str, Any] | None = None, earlier: Sequence[BadInput] = ()
) -> Study:
    """Returns the study that a file of configs/studies describes.

    Args:
      study: a ConfigDict of `config`, the ConfigDict of a run; `grid`, values to try of its keys,
        as {'depth': {'solver': (...), 'share': (...)}}, or several such grids, whose rows are put
        one after the other; the settings of `StudyConfig`; `matched`,
        {'row': solver, 'by': ..., 'solvers': (...)}, which adds for each row of that solver a row
        of each of those, nearest to it by 'nfe', 'flops' or 'parameters', and `means`, whether it
        takes more 'steps' over the same ODE or more 'layers'; `tune`, {'grid': values to try per
        row}; `contrasts`, (claim, better row, worse row) each, None for `find_claims`.
      changes: values that replace those, as {'folds': 3, 'config.seed': 1}.
      earlier: what the same input was refused for already, to be raised with what else is wrong.

    Raises:
      BadInput: keys, names or values that are not accepted.
    """
    changes, refusals = changes or {}, list(earlier)
    check_keys(study)
    of_run = {k.removeprefix("config."): v for k, v in changes.items() if k.startswith("config.")}

    with collecting(refusals):
        settings = read_study(study, changes)
    with collecting(refusals):
        config = from_config_dict(study.config, of_run)
    refuse(refusals)

    check_folds(settings, config)
    rows = [row for grid in _grids(study) for row in grid_rows(study.config, of_run, grid)]
    check_names([row.name for row in rows])
    rows += matched_rows(rows, settings.matched)

    has_classes = not isinstance(config.data, LanguageDataConfig)
    metric = settings.metric or ("accuracy" if has_classes else "loss")
    check_metric(metric, config)

    grid = flatten(study.tune.to_dict().get("grid", {})) if settings.tune is not None else {}
    check_tuning(settings, config, grid)

    replicas = _replicas(settings, config.train_steps)
    trials = _trials(settings, config.train_steps, grid)

    # What a length or a trial makes impossible is refused here, and not after hours of others.
    for row in rows:
        for replica in {replica.steps: replica for replica in replicas}.values():
            replica_config(row, replica)
        for trial in trials:
            replica_config(row, trial.replica, dict(trial.values))

    return Study(
        rows=tuple(rows),
        replicas=replicas,
        trials=trials,
        claims=_claims(study.get("contrasts"), rows),
        settings=settings,
        metric=metric,
    )


def _grids(study: Any) -> list[dict[str, Any]]:
    """The grids of a study, one or several."""
    grids = study.grid if isinstance(study.grid, list | tuple) else (study.grid,)
    return [grid.to_dict() if hasattr(grid, "to_dict") else dict(grid) for grid in grids]


def _replicas(settings: StudyConfig, train_steps: int) -> tuple[Replica, ...]:
    folds = [None] if settings.folds is None else range(settings.folds)
    return tuple(
        Replica(fold, seed, None if steps == train_steps else steps)
        for steps in settings.lengths or (train_steps,)
        for seed in settings.seeds
        for fold in folds
    )


def _trials(settings: StudyConfig, train_steps: int, grid: Mapping[str, Any]) -> tuple[Trial, ...]:
    if settings.tune is None:
        return ()

    # One fold's training images serve for all: what they are validated on lies in no fold.
    fold = None if settings.folds is None else 0
    steps = settings.tune.steps or max(train_steps // 2, 1)
    return tuple(
        Trial(tuple(zip(grid, values, strict=True)), Replica(fold, seed, steps))
        for values in itertools.product(*grid.values())
        for seed in settings.tune.seeds
    )


def _claims(contrasts: Any, rows: list[Row]) -> tuple[Claim, ...]:
    if contrasts is None:
        return tuple(find_claims(rows))

    for entry in contrasts:
        check_contrast(entry, [row.name for row in rows])
    return tuple(
        Claim(*entry[:3], expected="worse" if entry[3:] else "better") for entry in contrasts
    )


def replica_config(
    row: Row, replica: Replica, values: Mapping[str, Any] | None = None
) -> RunConfig:
    """Returns the config of one run.

    Args:
      row: what is trained.
      replica: with which seed, on which fold, for how long.
      values: of tuned keys, as {'optimizer.learning_rate': 1e-3}.
    """
    changes = {**(values or {}), "seed": replica.run_seed}
    if replica.fold is not None:
        changes["data.fold"] = replica.fold
    if replica.steps is not None:
        changes["train_steps"] = replica.steps
    return from_config_dict(to_dict(row.config), changes)
