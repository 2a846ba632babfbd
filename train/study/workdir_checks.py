"""Whether the runs that a workdir holds are those of a study."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from train.study.folder_checks import check_no_others
from train.study.folders import (
    RUNS,
    TRIALS,
    is_finished,
    ordered_runs,
    run_folder,
    trial_folder,
)
from train.study.grid import Study, replica_config


def check_same_study(
    study: Study, path: epath.Path, chosen: Mapping[str, Mapping[str, Any] | None]
) -> None:
    """Raises BadInput for a workdir with runs that are not the study's.

    Args:
      study: that is to be run.
      path: of its workdir.
      chosen: each row's tuned values, by its name; None where its trials are not finished.
    """
    runs = ordered_runs(study)
    slugs = {(RUNS, row.slug, replica.slug) for row, replica in runs}
    slugs |= {(TRIALS, row.slug, trial.slug) for row in study.rows for trial in study.trials}
    check_no_others(path, [f"{row}/{run}" for _, row, run in sorted(_stored_runs(path) - slugs)])

    for row in study.rows:
        for trial in study.trials:
            config = replica_config(row, trial.replica, dict(trial.values))
            is_finished(trial_folder(path, row, trial), config)

    for row, replica in runs:
        if (values := chosen[row.name]) is not None:
            is_finished(run_folder(path, row, replica), replica_config(row, replica, values))


def _stored_runs(path: epath.Path) -> set[tuple[str, str, str]]:
    """The runs that a study's workdir holds: (kind, row, replica), as their folders are named."""
    # Found by their configs, as file managers leave hidden files between the folders.
    configs = [c for kind in (RUNS, TRIALS) for c in (path / kind).glob("*/*/config.json")]
    return {(c.parent.parent.parent.name, c.parent.parent.name, c.parent.name) for c in configs}
