"""Runs a study: a grid of training runs over folds and seeds, and its table.

    python -m train.study --study=configs/studies/digits.py --workdir=runs/studies/digits --dry_run
    python -m train.study --study=configs/studies/digits.py --workdir=runs/studies/digits

Every run is an ordinary training run in a folder of its own; a study that was stopped goes on where
it was when the same command is given again. The workdir then holds results.jsonl (a line a run),
table.md and plot.svg. It is one study's: of another one it is refused, unless that has every run of
the first, and more. Exit codes: 0 done, 1 failed, 2 bad input, 75 stopped by a signal.
"""

import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from etils import epath
from rich.console import Console

from train import command_line
from train.checkpoint.workdir import locked, read_config
from train.config.stored import resume_conflicts
from train.config.study import study_settings
from train.errors import BadInput
from train.files import as_path, write_atomic
from train.logs.metrics import read_metrics, read_scores
from train.loop import train
from train.study import report
from train.study.grid import (
    Replica,
    Row,
    Study,
    from_study_dict,
    replica_config,
)

FLAGS = flags.FlagValues()
command_line.define_path("workdir", "Folder or gs:// address of the study.", FLAGS)
flags.DEFINE_bool("dry_run", False, "Print the runs and what they cost.", flag_values=FLAGS)


def run_study(study: Study, workdir: str | epath.Path, console: Console) -> list[dict[str, Any]]:
    """Trains what is not yet trained, replica by replica, and reports.

    All rows of a replica come before the next replica, so that an unfinished study compares rows
    over the same replicas.

    Args:
      study: the rows and replicas.
      workdir: where each run has a folder, and results.jsonl, table.md and plot.svg are written.
      console: where the progress is printed.

    Returns:
      The lines of results.jsonl: row, fold, seed, costs, test metrics and seconds a step.

    Raises:
      BadInput: a config that is refused, or a workdir that holds another study or is in use.
    """
    path = as_path(workdir)
    with locked(path):
        _check_same_study(study, path)
        return _run_study(study, path, console)


def _run_study(study: Study, path: epath.Path, console: Console) -> list[dict[str, Any]]:
    if jax.config.values["jax_compilation_cache_dir"] is None:  # replicas are one program
        jax.config.update("jax_compilation_cache_dir", str(path / "compilation_cache"))
    runs = _runs(study)
    results = []
    for number, (row, replica) in enumerate(runs, 1):
        folder = _folder(path, row, replica)
        if not _is_finished(folder, row, replica):
            console.print(f"run {number} of {len(runs)}: {row.name}, {replica.slug}")
            train(replica_config(row, replica), folder)
            jax.clear_caches()  # the programs of a run are of no use to the next
        results.append(_result(folder, row, replica))
        lines = "".join(json.dumps(result) + "\n" for result in results)
        write_atomic(path / "results.jsonl", lines)
    scores = _scores(study, path)
    write_atomic(path / "table.md", report.markdown(study, results, scores))
    report.plot(study, results, path / "plot.svg")
    return results


def _runs(study: Study) -> list[tuple[Row, Replica]]:
    return [(row, replica) for replica in study.replicas for row in study.rows]


def _folder(path: epath.Path, row: Row, replica: Replica) -> epath.Path:
    return path / "runs" / row.slug / replica.slug


def _check_same_study(study: Study, path: epath.Path) -> None:
    """Refuses a workdir with runs that are not the study's, before anything in it is replaced."""
    theirs = {(row.slug, replica.slug) for row, replica in _runs(study)}
    others = [f"{row}/{replica}" for row, replica in _held(path) if (row, replica) not in theirs]
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        raise BadInput(
            f"{path} holds runs of another study: {', '.join(others[:5])}{more}. Take another "
            "--workdir, or delete this one; a study may gain rows, folds and seeds there, and lose "
            "none"
        )
    for row, replica in _runs(study):
        _is_finished(_folder(path, row, replica), row, replica)


def _held(path: epath.Path) -> list[tuple[str, str]]:
    """Returns (row, replica), as folders are named, of the runs that a study's workdir holds."""
    records = (path / "runs").glob("*/*/config.json")
    return sorted((record.parent.parent.name, record.parent.name) for record in records)


def _scores(study: Study, path: epath.Path) -> report.Scores:
    """Returns the scores of each test example of every run, by row, and by (fold, seed)."""
    return {
        row.name: {
            replica.key: read_scores(_folder(path, row, replica)) for replica in study.replicas
        }
        for row in study.rows
    }


def _is_finished(folder: epath.Path, row: Row, replica: Replica) -> bool:
    """Whether the run has its test scores; refuses a folder of another config."""
    if not (folder / "test_scores.npz").exists() or not (folder / "curves.png").exists():
        return False
    conflicts = resume_conflicts(read_config(folder), replica_config(row, replica))
    if conflicts:
        raise BadInput(
            f"{folder} holds a run of another study:\n  " + "\n  ".join(conflicts) + "\n"
            "Take another --workdir, or delete this one."
        )
    return True


def _result(folder: epath.Path, row: Row, replica: Replica) -> dict[str, Any]:
    lines = read_metrics(folder)
    speeds = [s for line in lines if (s := line.get("train/steps_per_sec"))]
    test = {name: value for name, value in lines[-1].items() if name.startswith("test/")}
    return {
        "row": row.name,
        "fold": replica.fold,
        "seed": replica.seed,
        **dataclasses.asdict(row.costs),
        **test,
        "secs_per_step": 1 / statistics.median(speeds) if speeds else None,
    }


def main(argv: Sequence[str]) -> None:
    """The program."""
    file = command_line.load_file(argv, "study")
    command_line.define_file("study", FLAGS)
    changes = command_line.parse_changes(argv, FLAGS, "study", study_settings(file))
    study = from_study_dict(file, changes)

    console = Console(soft_wrap=True)
    report.print_costs(study, console)
    if FLAGS.dry_run:
        return
    if not FLAGS.workdir:
        raise BadInput("--workdir is missing: give a folder for the study, e.g. --workdir=runs/s")
    run_study(study, FLAGS.workdir, console)
    table = (epath.Path(FLAGS.workdir) / "table.md").read_text()
    console.print(table, markup=False, highlight=False)
    console.print(f"{FLAGS.workdir}: results.jsonl, table.md, plot.svg")


if __name__ == "__main__":
    sys.exit(command_line.run(main, sys.argv, FLAGS, __doc__, "study"))
