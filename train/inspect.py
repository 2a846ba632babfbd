"""Shows what a run's folder holds: its checkpoints, its config against another, its parameters.

    python -m train.inspect runs/digits
    python -m train.inspect runs/digits --compare=runs/euler
    python -m train.inspect runs/digits --compare=configs/digits.py
    python -m train.inspect runs/digits --params
    python -m train.inspect --params --config=configs/imagenet.py:variant=vit_b

Every checkpoint is read whole and compared with its checksums. Nothing is written, no lock is taken
and no accelerator is used: a run may be looked at while it trains.

Exit codes: 0 the newest checkpoint is sound (with --compare and --params: done), 1 it is not, or
there is none yet, 2 bad input: a folder that holds no run, or whose config.json is not the run's.
"""

import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags
from jax.sharding import PartitionSpec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from odeformer import example_inputs, make_model
from odeformer.models.registry import ModelConfig
from odeformer.transformer.sharding import parameter_axes
from train import command_line
from train.checkpoint.checksums import leaf_name
from train.checkpoint.listing import SOUND, Found, find_best, list_checkpoints
from train.checkpoint.metadata import other_versions, verified_config
from train.checkpoint.restore import count_parameters
from train.checkpoint.workdir import read_config
from train.config.border import flatten, from_config_dict, to_dict
from train.config.run import RunConfig
from train.errors import BadInput, RunError
from train.files import expand
from train.logs.progress import describe

_PIPED_WIDTH = 200  # of lines that no terminal breaks
_COLUMNS: Mapping[str, Any] = {  # of the table -> how they are aligned
    "step": "right",
    "saved": "left",
    "MB": "right",
    "state": "left",
    "order": "right",
    "validation": "left",
    "": "left",
}

FLAGS = flags.FlagValues()
command_line.define_path("workdir", "Folder or gs:// address of the run; or give it alone.", FLAGS)
command_line.define_path(
    "compare", "Show where its config differs from this run's or file's.", FLAGS
)
flags.DEFINE_bool("params", False, "Show the model's parameters.", flag_values=FLAGS)


def parameter_shapes(config: ModelConfig) -> Any:
    """Returns the shapes and dtypes of a model's parameters; no memory is taken for them.

    Args:
      config: of the model.
    """
    key = jax.eval_shape(jax.random.key, 0)
    return jax.eval_shape(make_model(config).init, key, *example_inputs(config))["params"]


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Returns {'group.key': (value here, value there)} where two configs differ.

    Args:
      here: a config, as a nested dict.
      there: another; a key that one of them lacks is 'absent' there.
    """
    left, right, absent = flatten(here), flatten(there), object()

    def shown(value: Any) -> str:
        return "absent" if value is absent else repr(value)

    pairs = {key: (left.get(key, absent), right.get(key, absent)) for key in sorted(left | right)}
    return {key: (shown(a), shown(b)) for key, (a, b) in pairs.items() if a != b}


def _print_checkpoints(workdir: str, config: RunConfig, console: Console) -> None:
    found = list_checkpoints(workdir, config)
    finished = [one for one in found if one.is_finished]
    done = finished[-1].step if finished else 0
    depth = dataclasses.asdict(config.model.depth)
    settings = ", ".join(f"{name} {value}" for name, value in depth.items() if value is not None)
    parameters = count_parameters(parameter_shapes(config.model))
    _say(
        console,
        f"{workdir}: {config.task} ({config.data.name}), seed {config.seed}, saved at step {done} "
        f"of {config.train_steps}, {parameters:,} parameters, {settings}",
    )
    if not found:
        raise RunError(f"{workdir} holds no checkpoint yet")
    best = find_best(found, config.checkpoint.best)
    orders = any(one.record and one.record.position.shuffle for one in found)
    table = Table(title="checkpoints")
    for name, justify in _COLUMNS.items():
        if name != "order" or orders:
            table.add_column(name, justify=justify)
    for one in found:
        table.add_row(*_cells(one, finished, best, orders))
    console.print(table)
    for one in found:
        if one.reason:
            _say(console, f"{one.name} is {one.state}: {one.reason}")
    if finished and (record := finished[-1].record) and (other := other_versions(record)):
        _say(console, f"step {done} was saved with {', '.join(other)}")
    verified_config(workdir)  # refuses one that the checkpoints were not made with
    _check_newest(workdir, finished)


def _cells(one: Found, finished: Sequence[Found], best: int | None, orders: bool) -> list[str]:
    """The row of a checkpoint."""
    marks = {
        "newest": bool(finished) and one is finished[-1],
        "best": one.is_finished and one.step == best,
    }
    order = one.record.position.shuffle if one.record else None
    return [
        str(one.step),
        f"{one.saved:%Y-%m-%d %H:%M}" if one.saved else "",
        f"{one.size / 1e6:.2f}" if one.size is not None else "",
        one.state,
        *([str(order or "")] if orders else []),
        describe(one.record.metrics) if one.record else "",
        ", ".join(name for name, holds in marks.items() if holds),
    ]


def _check_newest(workdir: str, finished: Sequence[Found]) -> None:
    """Raises RunError where the newest checkpoint is not sound."""
    if not finished:
        raise RunError(f"{workdir} holds no finished checkpoint")
    newest = finished[-1]
    if newest.state == SOUND:
        return
    sound = [one.step for one in finished if one.state == SOUND]
    rest = f"the newest sound one is of step {sound[-1]}" if sound else "none is sound"
    raise RunError(
        f"the newest checkpoint of {workdir}, step {newest.step}, is {newest.state}: {rest}"
    )


def _print_differences(workdir: str, other: str, console: Console) -> None:
    here, there = to_dict(read_config(workdir)), to_dict(_config_of(other))
    found = differences(here, there)
    if not found:
        _say(console, f"{workdir} and {other} have the same config")
        return
    table = Table(title=f"{workdir} (here) and {other} (there)")
    for name in ("key", "here", "there"):
        table.add_column(name, overflow="fold")
    for key, values in found.items():
        table.add_row(*map(Text, (key, *values)))
    console.print(table)


def _config_of(other: str) -> RunConfig:
    """The config of a file FILE.py or FILE.py:argument, or else of a workdir."""
    if other.partition(":")[0].endswith(".py"):
        return from_config_dict(command_line.load_file(["", f"--compare={other}"], "compare"))
    return read_config(other)


def _print_parameters(config: ModelConfig, console: Console) -> None:
    shapes = parameter_shapes(config)
    axes = jax.tree.leaves(
        parameter_axes(shapes), is_leaf=lambda spec: isinstance(spec, PartitionSpec)
    )
    table = Table(title="parameters")
    for name in ("name", "shape", "dtype", "entries", "bytes", "axes"):
        table.add_column(name, justify="right" if name in ("entries", "bytes") else "left")
    entries, sizes = Counter(), Counter()
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    for (path, leaf), spec in zip(leaves, axes, strict=True):
        name, count = leaf_name(path), math.prod(leaf.shape)
        size = count * leaf.dtype.itemsize
        for total in (name.partition("/")[0], "all"):
            entries[total] += count
            sizes[total] += size
        shape = " x ".join(map(str, leaf.shape))
        named = " ".join(axis or "-" for axis in spec)
        table.add_row(name, shape, str(leaf.dtype), f"{count:,}", f"{size:,}", named)
    table.add_section()
    for total in [*(name for name in entries if name != "all"), "all"]:
        table.add_row(total, "", "", f"{entries[total]:,}", f"{sizes[total]:,}", "")
    table.caption = "axes: what a mesh may split; -: never split"
    console.print(table)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _workdir_of(rest: Sequence[str]) -> str:
    """The workdir, of --workdir or of the arguments that are no flags."""
    given = [*([FLAGS.workdir] if FLAGS.workdir else []), *rest]
    if len(given) != 1:
        raise BadInput(f"give the folder of one run, e.g. runs/digits; {len(given)} were given")
    return expand(given[0])


def _inspect(argv: Sequence[str], console: Console) -> None:
    if command_line.flag_value(argv, "config") is not None:
        config = command_line.parse_config(argv, FLAGS)
        if not FLAGS.params or FLAGS.workdir or FLAGS.compare:
            raise BadInput("--config goes with --params alone: it shows a config's parameters")
        _print_parameters(config.model, console)
        return
    workdir = _workdir_of(command_line.parse(argv, FLAGS))
    if FLAGS.compare:
        _print_differences(workdir, FLAGS.compare, console)
    if FLAGS.params:
        _print_parameters(read_config(workdir).model, console)
    if not FLAGS.compare and not FLAGS.params:
        _print_checkpoints(workdir, read_config(workdir), console)


def main(argv: Sequence[str]) -> None:
    """The program."""
    jax.config.update("jax_platforms", "cpu")  # an accelerator is the trainer's
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    try:
        _inspect(argv, console)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise BadInput(f"the run cannot be read: {error}") from error
    except ImportError as error:
        raise BadInput(
            f"the workdir needs a package that is not there ({error}): for gs:// addresses "
            "pip install 'etils[epath-gcs]'"
        ) from error


if __name__ == "__main__":
    sys.exit(command_line.run(main, sys.argv, FLAGS, __doc__, "config"))
