"""Runs a study: a grid of training runs over folds and seeds, and its table.

    python -m train.study --study=configs/studies/digits.py --workdir=runs/studies/digits --dry_run
    python -m train.study --study=configs/studies/digits.py --workdir=runs/studies/digits

Every run is an ordinary training run in its own folder; the same command resumes a study that was
stopped. The workdir then holds results.jsonl (a line per run), table.md and plot.svg. It belongs to
one study: another one is refused, unless it has every run of the first, and more. Exit codes: 0
done, 1 failed, 2 bad input, 75 stopped by a signal.
"""

import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from train.startup import announce, note

announce(__name__)  # before what takes seconds to import

import jax
from absl import flags
from etils import epath
from rich.console import Console

from train import command_line
from train.checkpoint.workdir import locked
from train.config.study import study_settings
from train.errors import BadInput
from train.files import as_path, write_atomic
from train.logs.metrics import read_metrics, read_scores
from train.loop import train
from train.study import report
from train.study.folders import check_same_study, is_finished, ordered_runs, run_folder
from train.study.grid import Replica, Study, from_study_dict, replica_config
from train.study.rows import Row

FLAGS = flags.FlagValues()
command_line.define_path("workdir", "Folder or gs:// address of the study.", FLAGS)
flags.DEFINE_bool("dry_run", False, "Print the runs and their costs.", flag_values=FLAGS)


def run_study(study: Study, workdir: str | epath.Path, console: Console) -> list[dict[str, Any]]:
    """Trains what is not yet trained, replica by replica, and reports.

    Args:
      study: the rows and replicas.
      workdir: where each run has a folder, and results.jsonl, table.md and plot.svg are written.
      console: where the progress is printed.

    Returns:
      The lines of results.jsonl: row, fold, seed, costs, test metrics and seconds per step.

    Raises:
      BadInput: a config is refused, or the workdir holds another study or is in use.
    """
    path = as_path(workdir)
    with locked(path):
        # Before anything that the workdir holds is replaced.
        check_same_study(study, path)
        return _run_study(study, path, console)


def _run_study(study: Study, path: epath.Path, console: Console) -> list[dict[str, Any]]:
    # The replicas of a row are one program, as the seed is an argument: it is compiled once.
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(path / "compilation_cache"))

    runs, results = ordered_runs(study), []
    for number, (row, replica) in enumerate(runs, 1):
        folder = run_folder(path, row, replica)
        if not is_finished(path, row, replica):
            console.print(f"run {number} of {len(runs)}: {row.name}, {replica.slug}")
            train(replica_config(row, replica), folder)

            # The next run is another row: the programs in memory are of no use to it.
            jax.clear_caches()

        # Written after each run, for those who watch an unfinished study.
        results.append(_result(folder, row, replica))
        lines = "".join(json.dumps(result) + "\n" for result in results)
        write_atomic(path / "results.jsonl", lines)

    scores = _scores(study, path)
    write_atomic(path / "table.md", report.markdown(study, results, scores))
    report.plot(study, results, path / "plot.svg")
    return results


def _scores(study: Study, path: epath.Path) -> report.Scores:
    """The scores of each test example of every run, by row, and by (fold, seed)."""
    return {
        row.name: {
            replica.key: read_scores(run_folder(path, row, replica)) for replica in study.replicas
        }
        for row in study.rows
    }


def _result(folder: epath.Path, row: Row, replica: Replica) -> dict[str, Any]:
    """A run's line of results.jsonl."""
    lines = read_metrics(folder)
    test = {name: value for name, value in lines[-1].items() if name.startswith("test/")}

    # A run that is too short logs no speed.
    speeds = [speed for line in lines if (speed := line.get("train/steps_per_sec"))]
    secs_per_step = 1 / statistics.median(speeds) if speeds else None

    return {
        "row": row.name,
        "fold": replica.fold,
        "seed": replica.seed,
        **dataclasses.asdict(row.costs),
        **test,
        "secs_per_step": secs_per_step,
    }


def main(argv: Sequence[str]) -> None:
    # The file first: the flags that are accepted are its keys.
    file = command_line.load_file(argv, "study")
    command_line.define_file("study", FLAGS)
    settings = study_settings(file)
    changes, refusals = command_line.collect_changes(argv, FLAGS, "study", settings)
    note("counting what the runs cost")
    study = from_study_dict(file, changes, refusals)

    console = Console(soft_wrap=True)
    report.print_costs(study, console)
    if FLAGS.dry_run:
        return

    # Checked here, as a dry run needs no folder.
    if not FLAGS.workdir:
        raise BadInput("--workdir is missing: give a folder for the study, e.g. --workdir=runs/s")

    run_study(study, FLAGS.workdir, console)

    # The table's intervals stand in brackets, which rich would read as markup.
    table = (epath.Path(FLAGS.workdir) / "table.md").read_text()
    console.print(table, markup=False, highlight=False)
    console.print(f"{FLAGS.workdir}: results.jsonl, table.md, plot.svg")


if __name__ == "__main__":
    sys.exit(command_line.run(main, sys.argv, FLAGS, __doc__, "study"))
