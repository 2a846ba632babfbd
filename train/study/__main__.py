"""Runs a study: a grid of training runs over folds and seeds, and its tables.

    python -m train.study --study=configs/studies/digits.py --workdir=runs/studies/digits --dry_run
    python -m train.study --study=configs/studies/digits.py --workdir=runs/studies/digits
    python -m train.study --render=runs/studies/digits,runs/studies/cifar10

What is compared, and by which rule, is recorded in study.json before the first run. Where the study
tunes, each row's trials come first. Every run is an ordinary training run in its own folder; the
same command resumes a study that was stopped. The workdir then holds results.jsonl (a line per run
and per trial), table.md and plot.svg, which --render makes again from results.jsonl and study.json
alone, with one table of claims for all the folders. A workdir belongs to one study: another one is
refused, unless it has every run of the first, and more. Exit codes: 0 done, 1 failed, 2 bad input,
75 stopped by a signal.
"""

import json
import sys
from collections.abc import Mapping, Sequence
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
from train.errors import BadInput, RunDiverged, warn
from train.files import as_path, write_atomic
from train.loop import train
from train.programs import Programs
from train.study import report
from train.study.folders import (
    DIVERGED,
    declare,
    is_finished,
    ordered_runs,
    run_folder,
    trial_folder,
)
from train.study.grid import Study, from_study_dict, replica_config
from train.study.plot import plot
from train.study.results import FILE, declaration, read_results, run_line, trial_line
from train.study.rows import Row
from train.study.tuning import Choice, choose, unfinished_trials
from train.study.workdir_checks import check_same_study

FLAGS = flags.FlagValues()
command_line.define_path("workdir", "Folder or gs:// address of the study.", FLAGS)
flags.DEFINE_bool("dry_run", False, "Print the runs and their costs.", flag_values=FLAGS)
flags.DEFINE_list(
    "render", [], "Workdirs of studies whose tables are made again.", flag_values=FLAGS
)


def run_study(study: Study, workdir: str | epath.Path, console: Console) -> list[dict[str, Any]]:
    """Trains what is not yet trained, trials first, then replica by replica, and reports.

    Args:
      study: the rows and replicas.
      workdir: where each run has a folder, and study.json, results.jsonl, table.md and plot.svg are
        written.
      console: where the progress is printed.

    Returns:
      The lines of results.jsonl: row, fold, seed, costs, test metrics and seconds per step.

    Raises:
      BadInput: a config is refused, or the workdir holds another study or is in use.
      RunError: a run diverged, or every trial of a row.
    """
    path = as_path(workdir)
    with locked(path):
        # Before anything that the workdir holds is replaced.
        check_same_study(study, path, _choices(study, path))
        declare(path, declaration(study))
        return _run_study(study, path, console)


def _run_study(study: Study, path: epath.Path, console: Console) -> list[dict[str, Any]]:
    # A study that is resumed finds its programs on the disk.
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(path / "compilation_cache"))

    _run_trials(study, path, console)
    results = [trial_line(row, trial, path) for row in study.rows for trial in study.trials]
    choices = {row.name: _chosen(study, row, path) for row in study.rows}

    # The replicas of a row are one program, as seed and fold are arguments: it is compiled once.
    runs, programs = ordered_runs(study), Programs()
    for number, (row, replica) in enumerate(runs, 1):
        choice, folder = choices[row.name], run_folder(path, row, replica)
        config = replica_config(row, replica, choice.values)
        if not is_finished(folder, config):
            console.print(f"run {number} of {len(runs)}: {row.name}, {replica.slug}")
            train(config, folder, programs=programs)

        # Written after each run, for those who watch an unfinished study.
        line = run_line(study, row, replica, config=config, path=path, choice=choice)
        results.append(line)
        _write_lines(path, results)

    _write_tables(path)
    return results


def _run_trials(study: Study, path: epath.Path, console: Console) -> None:
    """Trains what the rows' own values are chosen by."""
    trials, programs = unfinished_trials(study, path), Programs()
    former = None
    for number, (row, trial) in enumerate(trials, 1):
        # Another row's programs are of no use to this one.
        if row is not former:
            former, programs = row, Programs()
            jax.clear_caches()

        console.print(f"trial {number} of {len(trials)}: {row.name}, {trial.slug}")
        folder = trial_folder(path, row, trial)
        try:
            train(replica_config(row, trial.replica, dict(trial.values)), folder, programs=programs)
        except RunDiverged as error:
            write_atomic(folder / DIVERGED, f"{error}\n")


def _choices(study: Study, path: epath.Path) -> Mapping[str, Mapping[str, Any] | None]:
    """Each row's tuned values, None where its trials are not finished."""
    choices = {row.name: choose(study, row, path) for row in study.rows}
    return {name: choice and choice.values for name, choice in choices.items()}


def _chosen(study: Study, row: Row, path: epath.Path) -> Choice:
    """A row's choice, with a warning where a better value may lie outside of what was tried."""
    choice = choose(study, row, path)
    assert choice is not None  # the trials have been run
    for key in choice.edges:
        warn(
            f"{row.name}: {key}={choice.values[key]:g} is at the edge of what was tried; a wider "
            "study.tune.grid, in another --workdir, may find a better one"
        )
    return choice


def _write_lines(path: epath.Path, results: Sequence[Mapping[str, Any]]) -> None:
    lines = "".join(json.dumps(result) + "\n" for result in results)
    write_atomic(path / FILE, lines)


def _write_tables(path: epath.Path) -> None:
    results = read_results(path)
    write_atomic(path / "table.md", report.markdown(results))
    plot(results, path / "plot.svg")


def main(argv: Sequence[str]) -> None:
    if command_line.flag_value(argv, "render") is not None:
        _render(argv)
        return

    # The file first: the flags that are accepted are its keys.
    file = command_line.load_file(argv, "study")
    command_line.define_file("study", FLAGS)
    modules = command_line.import_own(argv, "study.config", file.get("config", {}))
    settings = study_settings(file)
    changes, refusals = command_line.collect_changes(argv, FLAGS, "study", settings)
    note("counting what the runs cost")
    changes |= {f"config.{key}": names for key, names in modules.items()}
    study = from_study_dict(file, changes, refusals)

    console = Console(soft_wrap=True)
    report.print_costs(study, console)
    if FLAGS.dry_run:
        return

    # Checked here, as a dry run needs no folder.
    if not FLAGS.workdir:
        raise BadInput("--workdir is missing: give a folder for the study, e.g. --workdir=runs/s")

    run_study(study, FLAGS.workdir, console)
    _print_table(FLAGS.workdir, console)


def _render(argv: Sequence[str]) -> None:
    """Makes the tables again, and prints them."""
    rest = command_line.parse(argv, FLAGS)
    if rest or not FLAGS.render:
        raise BadInput("--render takes workdirs of studies, comma-separated, and no other flag")

    console = Console(soft_wrap=True)
    for workdir in FLAGS.render:
        _write_tables(as_path(workdir))
        _print_table(workdir, console)

    results = [read_results(workdir) for workdir in FLAGS.render]
    console.print(report.claims_markdown(results), markup=False, highlight=False)


def _print_table(workdir: str, console: Console) -> None:
    # The table's intervals stand in brackets, which rich would read as markup.
    console.print((as_path(workdir) / "table.md").read_text(), markup=False, highlight=False)
    console.print(f"{workdir}: results.jsonl, table.md, plot.svg")


if __name__ == "__main__":
    sys.exit(command_line.run(main, sys.argv, FLAGS, __doc__, "study"))
