"""Evaluates a model on a split; as a program, any run under any solver or tolerance.

python -m train.evaluate --workdir=runs/digits --config.depth.solver=tsit5 --config.depth.rtol=1e-3
python -m train.evaluate --workdir=runs/digits --solvers=all
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from odeformer import DepthConfig, ViTConfig, solvers
from odeformer.errors import unknown
from train import checkpoint, command_line
from train.config import RunConfig, from_config_dict, with_other_steps
from train.data.arrays import Images
from train.data.pipeline import eval_batches
from train.data.sources import load_splits
from train.errors import BadInput
from train.mesh import make_mesh, put_batch
from train.step import make_eval_step

ADAPTIVE_RTOL, ADAPTIVE_MAX_STEPS = 1e-2, 256  # of the adaptive rows of --solvers
SPLITS = ("train", "validation", "test")

FLAGS = flags.FlagValues()
flags.DEFINE_string("workdir", None, "Folder or gs:// address of the run.", flag_values=FLAGS)
flags.DEFINE_string("split", "test", f"One of {', '.join(SPLITS)}.", flag_values=FLAGS)
flags.DEFINE_list(
    "solvers",
    [],
    "Solvers to compare, comma-separated, or 'all'; by default the config's own.",
    flag_values=FLAGS,
)


def evaluate(
    params: Any, model: ViTConfig, data: Images, batch_size: int, mesh: Mesh, step: Any = None
) -> dict[str, float]:
    """Evaluates the weights on every example of a split, each counted once.

    Args:
      params: the model's parameters.
      model: the model's config.
      data: the split.
      batch_size: examples a batch; the last is filled up, its filling not counted.
      mesh: the devices.
      step: a jitted step of `make_eval_step`, to use again; one is made if none is given.

    Returns:
      loss (nats), accuracy, nfe (evaluations of all terms in one pass, the mean over batches) and
      failed_solves.
    """
    step = make_eval_step(model, data, mesh) if step is None else step
    sums = [step(params, put_batch(mesh, batch)) for batch in eval_batches(data, batch_size)]
    total = {name: float(sum(float(batch[name]) for batch in sums)) for name in sums[0]}
    return {
        "loss": total["loss"] / total["weight"],
        "accuracy": total["correct"] / total["weight"],
        "nfe": total["nfe"] / len(sums),
        "failed_solves": total["failed_solves"],
    }


def depths(config: DepthConfig, names: Sequence[str]) -> list[DepthConfig]:
    """Returns the depth under each named solver: fixed steps first, then adaptive where it can."""
    plain = dataclasses.replace(
        config, adjoint="checkpoint", rtol=None, atol=None, max_steps=None, per_sample=False
    )
    fixed = [dataclasses.replace(plain, solver=name) for name in names]
    adaptive = [
        dataclasses.replace(
            plain, solver=name, steps=None, rtol=ADAPTIVE_RTOL, max_steps=ADAPTIVE_MAX_STEPS
        )
        for name in names
        if solvers.is_adaptive(name)
    ]
    return fixed + adaptive


def compare(
    params: Any, config: RunConfig, data: Images, rows: Sequence[DepthConfig], console: Console
) -> list[dict[str, Any]]:
    """Evaluates the same weights at each depth, and prints the table."""
    mesh = make_mesh(config.mesh, config.eval.batch_size)
    table = Table(title="the same weights under other solvers")
    for column in ("solver", "steps a group", "accuracy", "loss", "NFE", "failed solves"):
        table.add_column(column, justify="left" if column == "solver" else "right")
    results = []
    for depth in rows:
        model = dataclasses.replace(config.model, depth=depth)
        metrics = evaluate(params, model, data, config.eval.batch_size, mesh)
        steps = f"rtol {depth.rtol:g}" if depth.rtol is not None else str(depth.fixed_steps)
        trained = (
            depth.solver == config.model.depth.solver and depth.rtol == config.model.depth.rtol
        )
        table.add_row(
            depth.solver + (" *" if trained else ""),
            steps,
            f"{metrics['accuracy']:.2%}",
            f"{metrics['loss']:.4f}",
            f"{metrics['nfe']:g}",
            f"{metrics['failed_solves']:g}",
        )
        results.append({"solver": depth.solver, "steps": steps, **metrics})
    table.caption = "* as trained (or as the flags say). NFE: evaluations of attention and of MLP."
    console.print(table)
    return results


def check_data(config: RunConfig, splits: dict[str, Images]) -> None:
    """Raises BadInput where the data set and the model do not fit one another."""
    data = splits["train"]
    for name, have, want in (
        ("image shape", data.images.shape[1:], config.model.image_shape),
        ("number of classes", data.classes, config.model.classes),
    ):
        if have != want:
            raise BadInput(
                f"the {name} of data set {config.data.name!r} is {have}, the model's is {want}: "
                "change config.model.image_size, channels or classes"
            )


def main(argv: Sequence[str]) -> None:
    """The program."""
    workdir = command_line.flag_value(argv, "workdir")
    if not workdir:
        raise BadInput("--workdir is missing: give the folder of a run")
    trained = checkpoint.read_config(workdir)
    cfg = command_line.parse_with_config(argv, FLAGS, checkpoint.read_config(workdir))
    config = from_config_dict(with_other_steps(cfg.to_dict(), trained.to_dict()))
    split, names = FLAGS.split, FLAGS.solvers
    if split not in SPLITS:
        raise BadInput(f"--split: {unknown('split', split, SPLITS)}")
    rows = [config.model.depth]
    if names:
        chosen = solvers.NAMES if names == ["all"] else names
        for name in chosen:
            if name not in solvers.NAMES:
                raise BadInput(f"--solvers: {unknown('solver', name, (*solvers.NAMES, 'all'))}")
        rows = depths(config.model.depth, chosen)
    splits = load_splits(config.data.name)
    check_data(config, splits)
    compare(checkpoint.load_params(workdir, config), config, splits[split], rows, Console())


if __name__ == "__main__":
    sys.exit(command_line.run(main, sys.argv, FLAGS, __doc__))
