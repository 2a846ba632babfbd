"""Evaluates the weights of a run, or pretrained ones, on a split, under any solver or tolerance.

python -m train.evaluate --workdir=runs/digits --config.depth.solver=tsit5 --config.depth.rtol=1e-3
python -m train.evaluate --workdir=runs/digits --solvers=all --steps=1,2,4,8
python -m train.evaluate --workdir=runs/digits --confusion
python -m train.evaluate --init=FOLDER --config=FILE.py --solvers=all --steps=1,2,4,8

--init is a pretrained model in the layout of transformers, which says how its inputs are prepared.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from train.startup import announce, note

announce(__name__)  # before what takes seconds to import

import jax
import numpy as np
from absl import flags
from rich.console import Console

from odeformer import DepthConfig, solvers
from train import command_line
from train.checkpoint import pretrained, weights
from train.checkpoint.pretrained_checks import check_alone
from train.checkpoint.restore import verified_config
from train.checkpoint.workdir import read_tokenizer
from train.checks import check_confusion, check_solvers, check_split, check_steps
from train.config.run import RunConfig
from train.data.sources import load_splits
from train.data.split import Split
from train.devices.checks import check_model_fits
from train.devices.mesh import device_mesh, parameter_shardings
from train.logs.classes import class_names, plot_confusion, print_classes
from train.logs.solver_table import solver_table, steps_text
from train.scores import make_eval_step, score, summarise
from train.tasks import make_task

SPLITS = ("train", "validation", "test")

# The tolerance and the limit of the adaptive rows of --solvers.
ADAPTIVE_RTOL, ADAPTIVE_MAX_STEPS = 1e-2, 256

FLAGS = flags.FlagValues()
command_line.define_path("workdir", "Folder or gs:// address of the run.", FLAGS)
command_line.define_path(
    "init",
    "Folder of a pretrained model, or its name on the Hugging Face Hub; with --config=FILE.py.",
    FLAGS,
)
command_line.define_step(FLAGS)
flags.DEFINE_string("split", "test", f"One of {', '.join(SPLITS)}.", flag_values=FLAGS)
flags.DEFINE_list(
    "solvers",
    [],
    "Solvers to compare, comma-separated, or 'all'; by default the config's own.",
    flag_values=FLAGS,
)
flags.DEFINE_list(
    "steps",
    [],
    "Numbers of fixed steps per group to compare, comma-separated; by default the config's own.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "confusion",
    False,
    "Draw which classes are taken for which into WORKDIR/confusion_SPLIT.png.",
    flag_values=FLAGS,
)


def depths(
    config: DepthConfig,
    names: Sequence[str],
    adaptive: bool = True,
    steps: Sequence[int | None] = (),
) -> list[DepthConfig]:
    """Returns the depth under each named solver: with fixed steps, then with adaptive ones.

    Args:
      config: the run's depth; where it is a reversible pair, so are those of fixed steps.
      names: the solvers.
      adaptive: whether to add adaptive steps, where a solver has them; a causal model refuses them.
      steps: numbers of fixed steps per group, each of which gets a row; none for the run's own.
    """
    # What belongs to the run's own solver: its adjoint may refuse another one, and no gradient is
    # taken here.
    plain = dataclasses.replace(
        config,
        adjoint="checkpoint",
        policy=None,
        rtol=None,
        atol=None,
        max_steps=None,
        per_sample=False,
    )

    fixed = [
        dataclasses.replace(plain, solver=name, steps=number)
        for name in names
        for number in steps or (plain.steps,)
    ]
    if not adaptive:
        return fixed

    return fixed + [
        dataclasses.replace(
            plain,
            solver=name,
            steps=None,
            rtol=ADAPTIVE_RTOL,
            max_steps=ADAPTIVE_MAX_STEPS,
            reversible=None,
        )
        for name in names
        if solvers.is_adaptive(name)
    ]


def compare(
    params: Any,
    config: RunConfig,
    data: Split,
    rows: Sequence[DepthConfig],
    console: Console,
) -> list[dict[str, Any]]:
    """Evaluates the same weights at each depth, and prints the table.

    Args:
      params: the model's parameters.
      config: the run's config; its own depth is marked in the table.
      rows: the depths.
      console: where the table is printed.

    Returns:
      solver, steps and the metrics of `summarise`, for each row.
    """
    scores = score_depths(params, config, data, rows)
    return _print_comparison(config, data, rows, scores, console)


def score_depths(
    params: Any, config: RunConfig, data: Split, rows: Sequence[DepthConfig]
) -> list[dict[str, np.ndarray]]:
    """Returns the scores of every example of a split, [N] each, at each depth.

    Args:
      params: the model's parameters.
      config: the run's config.
      rows: the depths.
    """
    mesh, task = device_mesh(config.mesh), make_task(config, data)
    params = jax.device_put(params, parameter_shardings(mesh, config.model, params))

    scores = []
    for depth in rows:
        note(f"compiling and evaluating {depth.solver}, steps per group: {steps_text(depth)}")
        step = make_eval_step(dataclasses.replace(config.model, depth=depth), task, mesh)
        size, workers = config.eval.batch_size, config.data.workers
        scores.append(score(params, data, size, mesh=mesh, step=step, workers=workers))
    return scores


def _print_comparison(
    config: RunConfig,
    data: Split,
    rows: Sequence[DepthConfig],
    scores: Sequence[Mapping[str, np.ndarray]],
    console: Console,
) -> list[dict[str, Any]]:
    """Prints the table, and returns its rows."""
    task = make_task(config, data)
    metrics = [summarise(task, of_depth) for of_depth in scores]

    console.print(solver_table(config.model.depth, rows, metrics))
    return [
        {"solver": depth.solver, "steps": steps_text(depth), **values}
        for depth, values in zip(rows, metrics, strict=True)
    ]


def _open_run(argv: Sequence[str]) -> tuple[RunConfig, Callable[[], tuple[Any, Any]]]:
    """The config of --workdir, and what reads its weights and its data."""
    workdir, config = command_line.parse_run(argv, FLAGS, verified_config)
    _check_flags()
    check_confusion(FLAGS.confusion, config.task, [*FLAGS.solvers, *FLAGS.steps])

    def read() -> tuple[Any, Any]:
        note(f"reading the data, {config.data.name}")
        splits = load_splits(config, read_tokenizer(workdir))
        mesh = device_mesh(config.mesh)
        check_model_fits(config.model, mesh)

        note(f"restoring the weights of {workdir}")
        return weights.load_params(workdir, config, mesh, FLAGS.step), splits

    return config, read


def _open_pretrained(argv: Sequence[str]) -> tuple[RunConfig, Callable[[], tuple[Any, Any]]]:
    """The config of --init and --config, and what reads the data."""
    config, changes = pretrained.parse_pretrained(argv, FLAGS)
    _check_flags()
    check_alone(FLAGS.init, FLAGS.workdir, FLAGS.step, FLAGS.confusion)

    note(f"reading the weights of {FLAGS.init}")
    loaded = pretrained.load(FLAGS.init, config, changes)
    check_model_fits(loaded.config.model, device_mesh(loaded.config.mesh))
    return loaded.config, lambda: (loaded.params, pretrained.load_data(loaded))


def main(argv: Sequence[str]) -> None:
    is_pretrained = command_line.flag_value(argv, "init") is not None
    config, read = (_open_pretrained if is_pretrained else _open_run)(argv)

    rows = [config.model.depth]
    if FLAGS.solvers or FLAGS.steps:
        chosen = list(solvers.NAMES) if FLAGS.solvers == ["all"] else FLAGS.solvers
        steps = [int(number) for number in FLAGS.steps]
        # Adaptive steps are chosen by the whole block: an answer would depend on later tokens.
        adaptive = bool(chosen) and not config.model.causal
        rows = depths(rows[0], chosen or [solvers.name_of(rows[0].solver)], adaptive, steps)

    params, splits = read()
    data = splits[FLAGS.split]
    scores, console = score_depths(params, config, data, rows), Console()
    _print_comparison(config, data, rows, scores, console)

    # By class for one depth: a table for each of many would bury the comparison.
    if len(rows) == 1 and "predicted" in scores[0]:
        print_classes(scores[0], class_names(data), console)
    if FLAGS.confusion:
        path = plot_confusion(FLAGS.workdir, FLAGS.split, scores[0], class_names(data))
        console.print(f"confusion matrix: {path}", markup=False, highlight=False, soft_wrap=True)


def _check_flags() -> None:
    check_steps(FLAGS.steps)
    check_split(FLAGS.split, SPLITS)
    check_solvers(FLAGS.solvers)


if __name__ == "__main__":
    sys.exit(command_line.run(main, sys.argv, FLAGS, __doc__, "config"))
