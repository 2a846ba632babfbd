"""A study: rows of a grid, each trained once per fold and seed, and the claims they test."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from train.config.border import from_config_dict
from train.config.data import ImageDataConfig
from train.config.run import RunConfig
from train.config.study import read_study
from train.errors import BadInput, collecting, refuse
from train.study.checks import check_folds, check_keys
from train.study.claims import Claim, find_claims
from train.study.rows import Row, grid_rows, matched_rows


@dataclasses.dataclass(frozen=True)
class Replica:
    """One training of a row.

    Attributes:
      fold: the fold that is tested on in cross-validation; None where the test split is fixed.
      seed: the run's seed.
    """

    fold: int | None
    seed: int

    @property
    def slug(self) -> str:
        """The name of the replica's folder."""
        return (f"fold{self.fold}_" if self.fold is not None else "") + f"seed{self.seed}"

    @property
    def key(self) -> tuple[int, int]:
        """(fold, seed), with fold 0 where there are no folds."""
        return (self.fold or 0, self.seed)


@dataclasses.dataclass(frozen=True)
class Study:
    """The rows and replicas of a study; every row has every replica."""

    rows: tuple[Row, ...]
    replicas: tuple[Replica, ...]
    claims: tuple[Claim, ...]


def from_study_dict(
    study: Any, changes: Mapping[str, Any] | None = None, earlier: Sequence[BadInput] = ()
) -> Study:
    """Returns the study that a file of configs/studies describes.

    Args:
      study: a ConfigDict of `config`, the ConfigDict of a run; `grid`, values to try of its keys,
        as {'depth': {'solver': (...), 'share': (...)}}; `matched`, {'row': solver, 'by': ...,
        'solvers': (...)}, which adds for each row of that solver a deeper or shallower row of each
        of those solvers, nearest to it by 'parameters', 'nfe' or 'flops', with as many sets of
        weights where the row shares them and one per layer where it does not; `folds`, a number or
        None; `seeds`.
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

    check_folds(settings.folds, config)
    rows = grid_rows(study.config, of_run, study.grid.to_dict())
    rows += matched_rows(rows, settings.matched)

    folds = [None] if settings.folds is None else range(settings.folds)
    replicas = tuple(Replica(fold, seed) for seed in settings.seeds for fold in folds)
    return Study(tuple(rows), replicas, tuple(find_claims(rows)))


def replica_config(row: Row, replica: Replica) -> RunConfig:
    """Returns the config of one run."""
    config = dataclasses.replace(row.config, seed=replica.seed)
    if replica.fold is None:
        return config

    # `check_folds` has refused folds of any other data.
    assert isinstance(config.data, ImageDataConfig)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, fold=replica.fold))
