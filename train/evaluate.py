"""Evaluates a model on a split; as a program, any run under any solver or tolerance.

python -m train.evaluate --workdir=runs/digits --config.depth.solver=tsit5 --config.depth.rtol=1e-3
python -m train.evaluate --workdir=runs/digits --solvers=all
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from odeformer import DepthConfig, LMConfig, solvers
from odeformer.errors import unknown
from train import command_line
from train.checkpoint import restore
from train.checkpoint.metadata import verified_config
from train.checkpoint.workdir import read_tokenizer
from train.config.run import RunConfig
from train.data.sources import load_splits
from train.data.split import Split
from train.devices.mesh import (
    check_model_fits,
    device_mesh,
    parameter_shardings,
)
from train.errors import BadInput
from train.scores import score, summarise
from train.step import make_eval_step
from train.tasks import make_task

ADAPTIVE_RTOL, ADAPTIVE_MAX_STEPS = 1e-2, 256  # of the adaptive rows of --solvers
SPLITS = ("train", "validation", "test")
_COLUMNS = {  # of the table, by metric
    "loss": ("loss", "{:.4f}"),
    "accuracy": ("accuracy", "{:.2%}"),
    "f1": ("F1", "{:.2%}"),
    "perplexity": ("ppl", "{:.2f}"),
    "bits_per_byte": ("bits/byte", "{:.4f}"),
    "nfe": ("NFE", "{:g}"),
    "failed_solves": ("failed", "{:g}"),
}

FLAGS = flags.FlagValues()
command_line.define_path("workdir", "Folder or gs:// address of the run.", FLAGS)
flags.DEFINE_integer(
    "step", None, "Of the checkpoint; by default the newest sound one.", flag_values=FLAGS
)
flags.DEFINE_string("split", "test", f"One of {', '.join(SPLITS)}.", flag_values=FLAGS)
flags.DEFINE_list(
    "solvers",
    [],
    "Solvers to compare, comma-separated, or 'all'; by default the config's own.",
    flag_values=FLAGS,
)


def depths(config: DepthConfig, names: Sequence[str], adaptive: bool = True) -> list[DepthConfig]:
    """Returns the depth under each named solver: fixed steps first, then adaptive where it can.

    Args:
      config: of the run.
      names: of solvers.
      adaptive: whether adaptive steps are wanted; a causal model takes none.
    """
    plain = dataclasses.replace(
        config,
        adjoint="checkpoint",
        policy=None,
        rtol=None,
        atol=None,
        max_steps=None,
        per_sample=False,
    )
    fixed = [dataclasses.replace(plain, solver=name) for name in names]
    if not adaptive:
        return fixed
    return fixed + [
        dataclasses.replace(
            plain, solver=name, steps=None, rtol=ADAPTIVE_RTOL, max_steps=ADAPTIVE_MAX_STEPS
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
      config: of the run; its own depth is marked in the table.
      data: the split.
      rows: the depths.
      console: where the table is printed.

    Returns:
      solver, steps and the metrics of `summarise`, for each row.
    """
    mesh, task = device_mesh(config.mesh), make_task(config, data)
    params = jax.device_put(params, parameter_shardings(mesh, config.model, params))
    table = Table(title="the same weights under other solvers")
    results = []
    for depth in rows:
        step = make_eval_step(dataclasses.replace(config.model, depth=depth), task, mesh)
        scores = score(params, data, config.eval.batch_size, mesh, step, config.data.workers)
        metrics = summarise(task, scores)
        if not results:
            for column in ("solver", "steps a group", *(_COLUMNS[name][0] for name in metrics)):
                table.add_column(column, justify="left" if column == "solver" else "right")
        steps = f"rtol {depth.rtol:g}" if depth.rtol is not None else str(depth.fixed_steps)
        trained = (
            depth.solver == config.model.depth.solver and depth.rtol == config.model.depth.rtol
        )
        table.add_row(
            depth.solver + (" *" if trained else ""),
            steps,
            *(_COLUMNS[name][1].format(value) for name, value in metrics.items()),
        )
        results.append({"solver": depth.solver, "steps": steps, **metrics})
    table.caption = (
        "* as trained (or as the flags say). NFE: evaluations of attention and of MLP. failed: "
        "examples whose solve ran out of steps."
    )
    console.print(table)
    return results


def main(argv: Sequence[str]) -> None:
    """The program."""
    workdir, config = command_line.parse_run(argv, FLAGS, verified_config)
    split, names = FLAGS.split, FLAGS.solvers
    if split not in SPLITS:
        raise BadInput(f"--split: {unknown('split', split, SPLITS)}")
    rows = [config.model.depth]
    causal = isinstance(config.model, LMConfig)
    if names:
        chosen = solvers.NAMES if names == ["all"] else names
        for name in chosen:
            if name not in solvers.NAMES:
                raise BadInput(f"--solvers: {unknown('solver', name, (*solvers.NAMES, 'all'))}")
        rows = depths(config.model.depth, chosen, adaptive=not causal)
    splits = load_splits(config, read_tokenizer(workdir))
    mesh = device_mesh(config.mesh)
    check_model_fits(config.model, mesh)
    params = restore.load_params(workdir, config, mesh, FLAGS.step)
    compare(params, config, splits[split], rows, Console())


if __name__ == "__main__":
    sys.exit(command_line.run(main, sys.argv, FLAGS, __doc__, "config"))
