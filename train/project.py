"""Projects a trained run's weights over depth onto another basis or size, and evaluates them.

python -m train.project --workdir=runs/x --config.depth.share=2
python -m train.project --workdir=runs/x --config.depth.basis=hat --config.depth.coefficients=8
python -m train.project --workdir=runs/x --config.depth.coefficients=8 --output=runs/y

Nothing is trained. The total number of fixed steps stays the same, unless config.depth.steps is
given. With --output the projected run is written, too: a workdir that the other programs read.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from train.startup import announce, note

announce(__name__)  # before what takes seconds to import

import jax
import jax.numpy as jnp
from absl import flags
from etils import epath
from rich.console import Console
from rich.table import Table

from odeformer import DepthConfig, project, resolution
from train import command_line
from train.checkpoint.metadata import Metadata
from train.checkpoint.parameters import count_parameters
from train.checkpoint.restore import verified_config
from train.checkpoint.saver import Saver
from train.checkpoint.weights import load_weights
from train.checkpoint.workdir import locked, read_tokenizer, record_run
from train.config.lora import LoraConfig
from train.config.refining import at_step
from train.config.run import RunConfig
from train.config.stored import for_evaluation
from train.data.sources import load_splits
from train.data.split import Split
from train.devices.checks import check_model_fits
from train.devices.mesh import device_mesh
from train.errors import BadInput
from train.evaluate import SPLITS, score_depths
from train.files import as_path
from train.logs.solver_table import metric_column
from train.optimizer import make_optimizer
from train.scores import summarise
from train.state import TrainState, init_guard
from train.tasks import make_task

FLAGS = flags.FlagValues()
command_line.define_path("workdir", "Folder or gs:// address of the run.", FLAGS)
command_line.define_path("output", "Folder or gs:// address of a run to write.", FLAGS)
command_line.define_step(FLAGS)
flags.DEFINE_string("split", "test", f"One of {', '.join(SPLITS)}.", flag_values=FLAGS)


def projected_config(run: RunConfig, asked: RunConfig) -> RunConfig:
    """Returns a run's config with the depth that was asked for.

    Args:
      run: the run's config, at its end.
      asked: the same with changes, including those that evaluation makes by itself.

    Raises:
      BadInput: a model that differs in more than its depth, or a depth that is not accepted.
    """
    if dataclasses.replace(asked.model, depth=run.model.depth) != run.model:
        raise BadInput(
            "a projection changes config.depth alone; other keys of the model were given: leave "
            "config.model out"
        )

    # What evaluation sets by itself is not a change that was asked for.
    plain = for_evaluation(run, {}).model.depth
    changes = {
        field.name: getattr(asked.model.depth, field.name)
        for field in dataclasses.fields(DepthConfig)
        if getattr(asked.model.depth, field.name) != getattr(plain, field.name)
    }
    try:
        depth = resolution.projected_depth(run.model.depth, changes)
    except ValueError as error:
        raise BadInput(f"config.depth: {error}") from error

    # Adapters are merged into what is projected.
    model = dataclasses.replace(run.model, depth=depth)
    return dataclasses.replace(run, model=model, lora=LoraConfig())


def project_run(
    workdir: str, run: RunConfig, to: RunConfig, splits: Mapping[str, Split], output: str | None
) -> list[dict[str, str]]:
    """Projects and evaluates a run, and writes the result where an output is named.

    Returns:
      weights, groups, parameters and the metrics, of the run and of its projection.
    """
    mesh = device_mesh(for_evaluation(run, {}).mesh)
    params, metadata = load_weights(workdir, for_evaluation(run, {}), mesh, FLAGS.step)
    variables, _ = project({"params": params}, run.model, to.model.depth)

    data, rows = splits[FLAGS.split], []
    for config, weights in ((run, params), (to, variables["params"])):
        plain = for_evaluation(config, {})
        (scores,) = score_depths(weights, plain, data, [plain.model.depth])
        rows.append(_row(plain, weights))
        for name, value in summarise(make_task(plain, data), scores).items():
            title, form = metric_column(name)
            rows[-1][title] = form.format(value)

    if output:
        _write(as_path(output), to, variables["params"], metadata, splits["train"])
    return rows


def _row(config: RunConfig, params: Any) -> dict[str, str]:
    depth, count = config.model.depth, count_parameters(params)
    steps = f"rtol {depth.rtol:g}" if depth.adaptive else f"{depth.fixed_steps} steps"
    return {
        "weights": f"{depth.basis} {depth.sets}",
        "groups": f"{depth.groups} x {steps}",
        "parameters": f"{count:,}",
    }


def _write(
    path: epath.Path, config: RunConfig, params: Any, metadata: Metadata, train: Split
) -> None:
    """Writes a run at the step of the checkpoint, with a fresh optimiser state."""
    optimizer = make_optimizer(config.optimizer, config.train_steps, config.model.depth.layers)
    position = metadata.position
    state = TrainState(
        step=jnp.int32(position.step),
        params=params,
        opt_state=optimizer.init(params),
        ema=None if config.optimizer.ema_decay is None else jax.tree.map(jnp.copy, params),
        guard=init_guard(),
    )

    with locked(path):
        record_run(path, config, train)
        with Saver(path, config, metadata.examples) as saver:
            saver.save(state, position, {}, wait=True)


def _table(rows: Sequence[Mapping[str, str]]) -> Table:
    table = Table(title="a run, and its weights projected over depth")
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "weights" else "right", no_wrap=True)

    for row in rows:
        table.add_row(*row.values())
    return table


def check_flags(split: str, output: str | None) -> None:
    """Raises BadInput for a split that does not exist, or an output that holds a run."""
    if split not in SPLITS:
        raise BadInput(f"--split is one of {', '.join(SPLITS)}; {split!r} was given")
    if output and (as_path(output) / "config.json").exists():
        raise BadInput(f"--output={output} holds a run: take another folder")


def main(argv: Sequence[str]) -> None:
    workdir, asked = command_line.parse_run(argv, FLAGS, verified_config)
    check_flags(FLAGS.split, FLAGS.output)

    run = verified_config(workdir)
    run = at_step(run, run.train_steps)
    to = projected_config(run, asked)
    check_model_fits(to.model, device_mesh(asked.mesh))

    note(f"reading the data, {run.data.name}")
    splits = load_splits(run, read_tokenizer(workdir))
    console = Console()
    console.print(_table(project_run(workdir, run, to, splits, FLAGS.output)))
    if FLAGS.output:
        console.print(f"run: {FLAGS.output}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(command_line.run(main, sys.argv, FLAGS, __doc__, "config"))
