"""Where the runs of a study lie, and what is there already."""

from etils import epath

from train.checkpoint.workdir import read_config
from train.config.stored import resume_conflicts
from train.errors import BadInput
from train.study.grid import Replica, Study, replica_config
from train.study.rows import Row


def ordered_runs(study: Study) -> list[tuple[Row, Replica]]:
    """Returns the runs of a study, in the order in which they are trained."""
    # A replica of all rows comes before the next replica, so that an unfinished study compares its
    # rows over the same replicas.
    return [(row, replica) for replica in study.replicas for row in study.rows]


def run_folder(path: epath.Path, row: Row, replica: Replica) -> epath.Path:
    """Returns the workdir of a run."""
    return path / "runs" / row.slug / replica.slug


def is_finished(path: epath.Path, row: Row, replica: Replica) -> bool:
    """Returns whether a run is trained and tested.

    Raises:
      BadInput: its folder holds a run of another config.
    """
    # A run writes its scores, then its curves: an interrupted one may have the first alone.
    folder = run_folder(path, row, replica)
    if not (folder / "test_scores.npz").exists() or not (folder / "curves.png").exists():
        return False

    conflicts = resume_conflicts(read_config(folder), replica_config(row, replica))
    if conflicts:
        raise BadInput(
            f"{folder} holds a run of another study:\n  " + "\n  ".join(conflicts) + "\n"
            "Take another --workdir, or delete this one."
        )
    return True


def check_same_study(study: Study, path: epath.Path) -> None:
    """Raises BadInput for a workdir with runs that are not the study's."""
    runs = ordered_runs(study)
    slugs = {(row.slug, replica.slug) for row, replica in runs}
    others = [f"{row}/{replica}" for row, replica in sorted(_stored_runs(path) - slugs)]
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        raise BadInput(
            f"{path} holds runs of another study: {', '.join(others[:5])}{more}. Take another "
            "--workdir, or delete this one; a study may gain rows, folds and seeds there, and lose "
            "none"
        )

    for row, replica in runs:
        is_finished(path, row, replica)


def _stored_runs(path: epath.Path) -> set[tuple[str, str]]:
    """The runs that a study's workdir holds: (row, replica), as their folders are named."""
    # Found by their configs, as file managers leave hidden files between the folders.
    configs = (path / "runs").glob("*/*/config.json")
    return {(config.parent.parent.name, config.parent.name) for config in configs}
