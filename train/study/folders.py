"""Where the runs of a study lie, and what is there already."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from train.checkpoint.workdir import read_config
from train.config.run import RunConfig
from train.config.stored import resume_conflicts
from train.files import write_atomic
from train.study.folder_checks import check_declared, check_no_conflict, contrast_key
from train.study.grid import Replica, Study, Trial
from train.study.rows import Row

RUNS, TRIALS, DECLARED, DIVERGED = "runs", "trials", "study.json", "diverged.txt"


def ordered_runs(study: Study) -> list[tuple[Row, Replica]]:
    """Returns the runs of a study, in the order in which they are trained."""
    # A replica of all rows comes before the next replica, so that an unfinished study compares its
    # rows over the same replicas. The programs of every row stay in memory meanwhile.
    return [(row, replica) for replica in study.replicas for row in study.rows]


def run_folder(path: epath.Path, row: Row, replica: Replica) -> epath.Path:
    """Returns the workdir of a run."""
    return path / RUNS / row.slug / replica.slug


def trial_folder(path: epath.Path, row: Row, trial: Trial) -> epath.Path:
    """Returns the workdir of a trial."""
    return path / TRIALS / row.slug / trial.slug


def is_finished(folder: epath.Path, config: RunConfig) -> bool:
    """Returns whether a run is trained and tested, or has diverged for good.

    Raises:
      BadInput: its folder holds a run of another config.
    """
    # A run writes its scores, then its curves: an interrupted one may have the first alone.
    ended = (folder / "test_scores.npz").exists() and (folder / "curves.png").exists()
    if not ended and not (folder / DIVERGED).exists():
        return False

    check_no_conflict(folder, resume_conflicts(read_config(folder), config))
    return True


def declare(path: epath.Path, declared: Mapping[str, Any]) -> dict[str, Any]:
    """Records what a study compares, and by which rule, before its first run; returns the record.

    Raises:
      BadInput: the workdir's study was declared otherwise: what would count as 'yes' is fixed
        before the first run. Rows, folds, seeds, lengths and contrasts may be added.
    """
    # As a reader gets it: JSON turns tuples into lists.
    record: dict[str, Any] = json.loads(json.dumps(declared))
    file = path / DECLARED
    if file.exists():
        first = json.loads(file.read_text())
        check_declared(file, first, record)

        # A contrast that was added to what had been seen is marked for good.
        old = {contrast_key(contrast): contrast for contrast in first["contrasts"]}
        record["contrasts"] = [
            old.get(contrast_key(contrast), {**contrast, "added": True})
            for contrast in record["contrasts"]
        ]

    write_atomic(file, json.dumps(record, indent=1) + "\n")
    return record
