"""Shows what a run's folder holds: its checkpoints, its config next to another, its parameters.

    python -m train.inspect runs/digits
    python -m train.inspect runs/digits --compare=runs/euler
    python -m train.inspect runs/digits --compare=configs/digits.py
    python -m train.inspect runs/a --compare=runs/b,runs/c --curves=abc.png
    python -m train.inspect runs/digits --params
    python -m train.inspect --params --config=configs/imagenet.py:variant=vit_b

Every checkpoint is read in full and compared with its checksums. Nothing is written, no lock is
taken and no accelerator is used: a run can be inspected while it trains.

Exit codes: 0 the newest checkpoint is sound (with --compare and --params: done), 1 it is not, or
there is none yet, 2 bad input: a folder that holds no run, or whose config.json is not the run's.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from train.startup import announce, note

announce(__name__)  # before what takes seconds to import

import jax
from absl import flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from train import command_line
from train.checkpoint.listing import SOUND, Entry, find_best, list_checkpoints
from train.checkpoint.metadata import other_versions
from train.checkpoint.parameters import count_parameters, parameter_table
from train.checkpoint.restore import verified_config
from train.checkpoint.workdir import read_config
from train.checks import (
    check_curves,
    check_newest_sound,
    check_one_folder,
    check_params_alone,
    reading_run,
    writing,
)
from train.config.border import flatten, from_config_dict, to_dict
from train.config.modules import warn_of_missing
from train.config.run import RunConfig
from train.data.sizes import with_sizes
from train.devices.mesh import parameter_shapes
from train.errors import RunError
from train.files import expand
from train.logs.comparison import plot_runs, read_runs, score_table
from train.logs.progress import describe

# Where there is no terminal, rich would fold tables to 80 columns.
_PIPED_WIDTH = 200

# The columns of the table of checkpoints, and how they are aligned.
_COLUMNS: Mapping[str, Any] = {
    "step": "right",
    "saved": "left",
    "MB": "right",
    "state": "left",
    "shuffle": "right",
    "validation": "left",
    "": "left",
}

FLAGS = flags.FlagValues()
command_line.define_path("workdir", "Folder or gs:// address of the run; or give it alone.", FLAGS)
flags.DEFINE_list(
    "compare",
    [],
    "Show how its config differs from those of these runs or files, and the runs' final scores.",
    flag_values=FLAGS,
)
command_line.define_path("curves", "With --compare: draw the runs' curves to this PNG.", FLAGS)
flags.DEFINE_bool("params", False, "Show the model's parameters.", flag_values=FLAGS)


def differing_keys(here: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Returns {'group.key': (value here, value there)} for the keys that differ.

    Args:
      here: a config, as a nested dict.
      there: another; the value of a key that one of them lacks is 'absent'.
    """
    # Not None, which is a value that a key may have.
    left, right, absent = flatten(here), flatten(there), object()

    def text(value: Any) -> str:
        return "absent" if value is absent else repr(value)

    pairs = {key: (left.get(key, absent), right.get(key, absent)) for key in sorted(left | right)}
    return {key: (text(a), text(b)) for key, (a, b) in pairs.items() if a != b}


def _print_checkpoints(workdir: str, config: RunConfig, console: Console) -> None:
    note(f"reading every checkpoint of {workdir}")
    entries = list_checkpoints(workdir, config)
    finished = [entry for entry in entries if entry.is_finished]
    newest = finished[-1] if finished else None
    _print_summary(workdir, config, newest.step if newest else 0, console)

    if not entries:
        raise RunError(f"{workdir} holds no checkpoint yet")

    console.print(_checkpoint_table(entries, newest, find_best(entries, config.checkpoint.best)))
    for entry in entries:
        if entry.reason:
            _print(console, f"{entry.name} is {entry.state}: {entry.reason}")

    if newest and newest.metadata and newest.metadata.initial:
        for line in newest.metadata.initial.lines(is_new=True):
            _print(console, line)

    if newest and newest.metadata and (other := other_versions(newest.metadata)):
        _print(console, f"step {newest.step} was saved with {', '.join(other)}")

    # After the table, which is of use even if the config.json is another run's.
    verified_config(workdir)
    check_newest_sound(workdir, [(entry.step, entry.state) for entry in finished], SOUND)


def _print_summary(workdir: str, config: RunConfig, step: int, console: Console) -> None:
    depth = dataclasses.asdict(config.model.depth)
    settings = ", ".join(f"{name} {value}" for name, value in depth.items() if value is not None)
    parameters = f"{count_parameters(parameter_shapes(config.model)):,} parameters"
    if config.lora.rank is not None:
        parameters += f" of {config.init.path}, adapted with rank {config.lora.rank}"
    _print(
        console,
        f"{workdir}: {config.task} ({config.data.name}), seed {config.seed}, saved at step {step} "
        f"of {config.train_steps}, {parameters}, {settings}",
    )


def _checkpoint_table(entries: Sequence[Entry], newest: Entry | None, best: int | None) -> Table:
    # Only a run that was rolled back has another shuffle than 0.
    has_shuffles = any(entry.metadata and entry.metadata.position.shuffle for entry in entries)

    table = Table(title="checkpoints")
    for name, justify in _COLUMNS.items():
        if name != "shuffle" or has_shuffles:
            table.add_column(name, justify=justify)

    for entry in entries:
        marks = {"newest": entry is newest, "best": entry.is_finished and entry.step == best}
        table.add_row(
            *_cells(entry, [mark for mark, holds in marks.items() if holds], has_shuffles)
        )

    return table


def _cells(entry: Entry, marks: Sequence[str], has_shuffles: bool) -> list[str]:
    """The row of a checkpoint."""
    shuffle = entry.metadata.position.shuffle if entry.metadata else None
    return [
        str(entry.step),
        f"{entry.saved:%Y-%m-%d %H:%M}" if entry.saved else "",
        f"{entry.size / 1e6:.2f}" if entry.size is not None else "",
        entry.state,
        *([str(shuffle or "")] if has_shuffles else []),
        describe(entry.metadata.metrics) if entry.metadata else "",
        ", ".join(marks),
    ]


def _compare(workdir: str, others: Sequence[str], console: Console) -> None:
    for other in others:
        _print_differences(workdir, other, console)

    # Files have a config alone, and runs that have just begun no scores.
    runs = read_runs([workdir, *(other for other in others if not _is_file(other))])
    if len(runs) > 1:
        console.print(score_table(runs))
    if FLAGS.curves:
        with writing("curves", FLAGS.curves):
            plot_runs(runs, FLAGS.curves)
        _print(console, f"curves: {FLAGS.curves}")


def _is_file(other: str) -> bool:
    return other.partition(":")[0].endswith(".py")


def _print_differences(workdir: str, other: str, console: Console) -> None:
    pairs = differing_keys(to_dict(read_config(workdir)), to_dict(_config_of(other)))
    if not pairs:
        _print(console, f"{workdir} and {other} have the same config")
        return

    table = Table(title=f"{workdir} (here) and {other} (there)")
    for name in ("key", "here", "there"):
        table.add_column(name, overflow="fold")

    # As Text: rich would read the brackets of a list as markup.
    for key, values in pairs.items():
        table.add_row(*map(Text, (key, *values)))

    console.print(table)


def _config_of(other: str) -> RunConfig:
    """The config of a file FILE.py or FILE.py:argument, or else of a workdir."""
    if _is_file(other):
        file = command_line.load_file(["", f"--compare={other}"], "compare")
        return from_config_dict(file, command_line.import_own([], "compare", file))
    return read_config(other)


def _print(console: Console, text: str) -> None:
    # Without markup, which brackets in a path would be taken for.
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _workdir_of(positional: Sequence[str]) -> str:
    """The workdir, given by --workdir or by itself."""
    folders = [*([FLAGS.workdir] if FLAGS.workdir else []), *positional]
    check_one_folder(folders)
    return expand(folders[0])


def _inspect(argv: Sequence[str], console: Console) -> None:
    if command_line.flag_value(argv, "config") is not None:
        config = command_line.parse_config(argv, FLAGS, complete=with_sizes)
        check_params_alone(FLAGS.params, [FLAGS.workdir, FLAGS.compare])
        console.print(parameter_table(config.model))
        return

    workdir = _workdir_of(command_line.parse(argv, FLAGS))
    check_curves(FLAGS.curves, FLAGS.compare)
    if FLAGS.compare:
        _compare(workdir, [expand(other) for other in FLAGS.compare], console)
    if FLAGS.params:
        console.print(parameter_table(read_config(workdir).model))
    if not FLAGS.compare and not FLAGS.params:
        config = read_config(workdir)
        warn_of_missing(workdir, config.modules)
        _print_checkpoints(workdir, config, console)


def main(argv: Sequence[str]) -> None:
    """Inspects a run."""
    # The accelerator belongs to the trainer, which may be running.
    jax.config.update("jax_platforms", "cpu")

    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH

    with reading_run():
        _inspect(argv, console)


if __name__ == "__main__":
    sys.exit(command_line.run(main, sys.argv, FLAGS, __doc__, "config"))
