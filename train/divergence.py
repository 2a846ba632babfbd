"""Skipped batches, reported as they come; and the report about a run that accepts none any more."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from train.checkpoint.checksums import leaf_name
from train.config.refining import at_step
from train.config.run import GuardConfig, RunConfig
from train.data.pipeline import BatchOrder
from train.devices.mesh import on_mesh, replicated
from train.devices.processes import is_primary
from train.errors import RunDiverged, warn
from train.files import write_atomic
from train.gradient import make_gradient
from train.run import Run
from train.state import TrainState
from train.step import random_keys
from train.tasks.task import Batch, Task


class SkipMonitor:
    """Reports skipped batches one step late, so that the device never waits for the host.

    While batches are being skipped, and before the run is saved, it waits for the newest step.
    """

    def __init__(self, config: GuardConfig, report: Callable[[int, Mapping[str, Any]], None]):
        """Starts with no batch reported.

        Args:
          config: how many consecutive skipped batches are too many.
          report: called with the step and the metrics of each skipped batch, in order.
        """
        self._config, self._report = config, report
        self._held: tuple[int, Mapping[str, Any]] | None = None
        self._is_first = True
        self._consecutive = 0

    def exceeded(self, step: int, metrics: Mapping[str, Any], wait: bool) -> bool:
        """Returns whether too many batches in a row were skipped.

        Args:
          step: that was dispatched.
          metrics: of that step.
          wait: whether to wait for this step, instead of reading the previous one alone.
        """
        previous, self._held = self._held, (step, metrics)
        if previous is not None:
            self._read(*previous)

        # At first, too: a run may be resumed amid skipped batches, and the batch that is one too
        # many must be noticed at its own step.
        limit = self._config.max_consecutive
        if wait or self._is_first or self._consecutive or limit == 1:
            self._held, self._is_first = None, False
            self._read(step, metrics)

        return self._consecutive >= limit

    def _read(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._consecutive = int(metrics["skipped_in_a_row"])
        if self._consecutive:
            self._report(step, metrics)


class Diverged(Exception):
    """Too many batches were skipped in a row."""

    def __init__(self, step: int, batch: Batch, metrics: Mapping[str, Any], state: TrainState):
        super().__init__(f"batches were skipped in a row up to step {step}")
        self.step = step  # of the last skipped batch
        self.batch = batch  # that batch, on the devices
        self.metrics = metrics  # of its step

        # After the step; a skipped batch changes nothing in it but the guard's counts.
        self.state = state


def first_skipped(diverged: Diverged) -> int:
    """Returns the first step of the skipped batches."""
    return diverged.step - int(diverged.metrics["skipped_in_a_row"]) + 1


def rolled_back(diverged: Diverged, rollback: int, limit: int) -> str:
    """Returns the warning about the rollback of that number, of as many as there may be."""
    return (
        f"{int(diverged.metrics['skipped_in_a_row'])} batches were skipped in a row up to step "
        f"{diverged.step}: the run is rolled back to a checkpoint, and resumed with the data "
        f"in another order (rollback {rollback} of {limit})"
    )


def given_up(diverged: Diverged, run: Run, shuffle: int) -> RunDiverged:
    """Writes divergence.json, and returns the error that reports it: no rollback is left.

    Args:
      diverged: the last skipped batch, and the state after it.
      run: as it began.
      shuffle: number of the shuffle of the data.
    """
    config = at_step(run.config, diverged.step - 1)
    gradients, parameters = norms(
        diverged.state,
        diverged.batch,
        config=config,
        task=run.task,
        mesh=run.mesh,
        base=run.base and run.base.params,
    )
    indices = _batch_indices(diverged.step, config, len(run.splits["train"]), shuffle)

    path = run.path / "divergence.json"
    if is_primary():
        values = _as_json(diverged, gradients, parameters, indices)
        # A run that diverged on a full disk is reported on the terminal all the same.
        try:
            write_atomic(path, json.dumps(values, indent=2) + "\n")
        except OSError as error:
            warn(f"{path} cannot be written: {error}")

    return RunDiverged(
        f"the run diverged, after {config.guard.max_rollbacks} rollbacks to a checkpoint "
        "(config.guard.max_rollbacks)\n"
        f"{_as_text(diverged, gradients, parameters, indices)}\nAll of it is in {path}.\n"
        "Take a smaller optimizer.learning_rate, say, and another --workdir"
    )


def _batch_indices(step: int, config: RunConfig, examples: int, shuffle: int) -> np.ndarray:
    """The indices of the examples of a step's batch."""
    batches = BatchOrder(
        examples,
        config.batch_size,
        config.train_steps,
        config.seed,
        repeats=config.data.repeats_per_batch,
        shuffle=shuffle,
    )
    indices, _ = batches[step - 1]
    return indices


def _as_json(
    diverged: Diverged,
    gradients: Mapping[str, float],
    parameters: Mapping[str, float],
    indices: np.ndarray,
) -> dict[str, Any]:
    return {
        "step": diverged.step,
        "loss": _number(diverged.metrics["loss"]),
        "grad_norm": _number(diverged.metrics["grad_norm"]),
        "skipped_in_a_row": int(diverged.metrics["skipped_in_a_row"]),
        "gradient_norms": {name: _number(value) for name, value in gradients.items()},
        "parameter_norms": {name: _number(value) for name, value in parameters.items()},
        "batch_indices": indices.tolist(),
    }


def _as_text(
    diverged: Diverged,
    gradients: Mapping[str, float],
    parameters: Mapping[str, float],
    indices: np.ndarray,
) -> str:
    metrics, width = diverged.metrics, max(map(len, gradients))
    rows = "".join(
        f"\n  {name:{width}}  gradient {gradients[name]:<12.4g} parameters {parameters[name]:.4g}"
        for name in gradients
    )

    # The file has all of them.
    examples = " ".join(map(str, indices[:16])) + (" ..." if len(indices) > 16 else "")

    return (
        f"step {diverged.step}: loss {float(metrics['loss']):.4g}, gradient norm "
        f"{float(metrics['grad_norm']):.4g}, {int(metrics['skipped_in_a_row'])} batches skipped "
        f"in a row\nnorms:{rows}\nexamples of the batch: {examples}"
    )


def norms(
    state: TrainState,
    batch: Batch,
    config: RunConfig,
    task: Task,
    mesh: Mesh,
    base: Any = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the norms of a batch's gradient and of the parameters, {name of a module: norm}.

    The arrays of a module, its kernel and bias, say, count together.

    Args:
      batch: the batch, on the devices.
      task: how it becomes a loss.
      base: the frozen weights that adapters adapt; None without adapters.
    """
    gradient = make_gradient(config, task)

    def by_module(tree: Any) -> dict[str, jax.Array]:
        squares = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            # A parameter of the model itself is a module of its own.
            module = leaf_name(path[:-1]) or leaf_name(path)
            squares[module] = squares.get(module, 0.0) + jnp.sum(leaf**2)

        return {module: jnp.sqrt(square) for module, square in squares.items()}

    def both(state: TrainState, batch: Batch, constants: Any, base: Any):
        # The keys of the step: dropout and augmentation are those of the batch that was skipped.
        key, keys = random_keys(constants["seed"], state.step, batch)
        grads, _ = gradient(state.params, *task.prepare(batch, keys, constants), key, base)
        return by_module(grads), by_module(state.params)

    constants = task.constants() | {"seed": np.uint32(config.seed)}

    # Replicated, for every process to fetch: the report is also in each one's error.
    with on_mesh(mesh, config.model):
        values = jax.jit(both, out_shardings=replicated(mesh))(state, batch, constants, base)

    gradients, parameters = jax.tree.map(float, jax.device_get(values))
    return gradients, parameters


def _number(value: Any) -> float | str:
    # JSON has no NaN and no infinity; here, where they are the news, they are given by name.
    return float(value) if math.isfinite(value) else str(float(value))
