"""What is told of a run that learns from no batch any more."""

import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from train.checkpoint.checksums import leaf_name
from train.config.run import RunConfig
from train.data.pipeline import BatchOrder
from train.devices.mesh import on_mesh, replicated
from train.devices.processes import is_primary
from train.errors import warn
from train.files import write_atomic
from train.gradient import make_gradient
from train.state import TrainState
from train.step import random_keys
from train.tasks.task import Batch, Task


class Diverged(Exception):
    """Too many batches were skipped in a row."""

    def __init__(self, step: int, batch: Batch, metrics: Mapping[str, Any], state: TrainState):
        super().__init__(f"batches were skipped in a row up to step {step}")
        self.step = step  # of the last one
        self.batch = batch  # that one, on the devices
        self.metrics = metrics  # of its step
        self.state = state  # behind it, and as before it but for the guard's counts


def first_skipped(diverged: Diverged) -> int:
    """Returns the step at which the batches began to be skipped."""
    return diverged.step - int(diverged.metrics["skipped_in_a_row"]) + 1


def report(
    diverged: Diverged,
    workdir: epath.Path,
    config: RunConfig,
    task: Task,
    mesh: Mesh,
    examples: int,
    shuffle: int,
) -> str:
    """Writes divergence.json, and returns what it says in words.

    Args:
      diverged: what happened.
      workdir: of the run.
      config: of the run.
      task: what is learnt.
      mesh: the devices.
      examples: of the training split.
      shuffle: number of the shuffle of the data.
    """
    gradients, parameters = norms(diverged.state, diverged.batch, config, task, mesh)
    batches: Any = BatchOrder(
        examples,
        config.batch_size,
        config.train_steps,
        config.seed,
        repeats=config.data.repeats_per_batch,
        shuffle=shuffle,
    )
    indices, _ = batches[diverged.step - 1]
    values = {
        "step": diverged.step,
        "loss": _number(diverged.metrics["loss"]),
        "grad_norm": _number(diverged.metrics["grad_norm"]),
        "skipped_in_a_row": int(diverged.metrics["skipped_in_a_row"]),
        "gradient_norms": {name: _number(value) for name, value in gradients.items()},
        "parameter_norms": {name: _number(value) for name, value in parameters.items()},
        "batch_indices": indices.tolist(),
    }
    path = workdir / "divergence.json"
    if is_primary():
        try:
            write_atomic(path, json.dumps(values, indent=2) + "\n")
        except OSError as error:
            warn(f"{path} cannot be written: {error}")
    width = max(map(len, gradients))
    lines = "".join(
        f"\n  {name:{width}}  gradient {gradients[name]:<12.4g} parameters {parameters[name]:.4g}"
        for name in gradients
    )
    return (
        f"step {diverged.step}: loss {float(diverged.metrics['loss']):.4g}, gradient norm "
        f"{float(diverged.metrics['grad_norm']):.4g}, "
        f"{values['skipped_in_a_row']} batches skipped in a row\nnorms:{lines}\nexamples of the "
        f"batch: {' '.join(map(str, indices[:16]))}{' ...' if len(indices) > 16 else ''}\n"
        f"All of it is in {path}."
    )


def norms(
    state: TrainState, batch: Batch, config: RunConfig, task: Task, mesh: Mesh
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the norms of a batch's gradient and of the parameters, by group of parameters.

    A group is a module: what it holds, kernel and bias, say, counts together.

    Args:
      state: of the run.
      batch: on the devices.
      config: of the run.
      task: what is learnt.
      mesh: the devices.
    """
    gradient = make_gradient(config, task)

    def by_group(tree: Any) -> dict[str, jax.Array]:
        squares = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            group = leaf_name(path[:-1]) or leaf_name(path)
            squares[group] = squares.get(group, 0.0) + jnp.sum(leaf**2)
        return {group: jnp.sqrt(square) for group, square in squares.items()}

    def both(state: TrainState, batch: Batch, given: Any):
        key, keys = random_keys(given["seed"], state.step, batch)
        grads, _ = gradient(state.params, *task.prepare(batch, keys, given), key)
        return by_group(grads), by_group(state.params)

    given = task.constants() | {"seed": np.uint32(config.seed)}
    with on_mesh(mesh, config.model):
        found = jax.jit(both, out_shardings=replicated(mesh))(state, batch, given)
    gradients, parameters = jax.tree.map(float, jax.device_get(found))
    return gradients, parameters


def _number(value: Any) -> float | str:
    """A number as JSON has it; one that is not finite as its name."""
    return float(value) if math.isfinite(value) else str(float(value))
