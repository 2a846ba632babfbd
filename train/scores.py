"""The jitted evaluation step, the scores of a split's examples, and the metrics of the split."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from odeformer import ModelConfig, make_model
from train.data.pipeline import eval_batch_size, eval_batches
from train.data.split import Split
from train.devices.mesh import (
    abstract_parameters,
    batch_shards,
    local_rows,
    on_mesh,
    put_batch,
    replicated,
    split_by_batch,
)
from train.devices.processes import is_primary
from train.errors import warn
from train.gradient import evaluations, failures, gaps
from train.tasks.task import Arrays, Batch, Metrics, Task, mean

# Of the state that a reversible pair recovers: above this error its gradients are wrong.
LOST = 1e-3


def make_eval_step(
    config: ModelConfig, task: Task, mesh: Mesh, jitted: Any = None
) -> Callable[[Any, Batch], Metrics]:
    """Returns the jitted evaluation step (params, batch) -> scores of each example.

    Args:
      config: the model's config.
      task: how batches become scores.
      mesh: the batch is split over its devices, the parameters as in training.
      jitted: what `jit_eval_step` returned for a task that differs in its fold alone.

    Returns:
      The step. A batch holds what the task says. Scores are float32 [B], replicated: those of the
      task, nfe (evaluations of all terms), failed (1 where a solve did not reach its end) and, of a
      reversible pair, reversible_gap (|y - z| / |y|).
    """
    step = jit_eval_step(config, task, mesh) if jitted is None else jitted
    constants = task.constants()

    def score_batch(params: Any, batch: Batch) -> Metrics:
        with on_mesh(mesh, config):
            return step(params, batch, constants)

    return score_batch


def jit_eval_step(config: ModelConfig, task: Task, mesh: Mesh) -> Any:
    """Returns the jitted evaluation step (params, batch, constants)."""
    model = make_model(config)

    def eval_step(params: Any, batch: Batch, constants: Arrays) -> Metrics:
        inputs = task.inputs(batch, constants)
        logits, aux = model.apply({"params": params}, *inputs, mutable=["ode"])
        scores = {
            **task.scores(logits, batch, constants),
            "nfe": evaluations(aux["ode"]),
            "failed": failures(aux["ode"]).any(axis=0),
        }
        if "gap" in aux["ode"]:
            scores["reversible_gap"] = gaps(aux["ode"])

        # Where the batch shares a solve, nfe and failed are scalars: each example gets them.
        size = batch["index"].shape
        return {k: jnp.broadcast_to(v, size).astype(jnp.float32) for k, v in scores.items()}

    return _jit(eval_step, config, mesh)


def _jit(function: Callable[..., Any], config: ModelConfig, mesh: Mesh) -> Any:
    """A function (params, batch, constants), jitted over a mesh."""
    params = jax.tree.map(lambda leaf: leaf.sharding, abstract_parameters(config, mesh))
    everywhere = replicated(mesh)
    return jax.jit(
        function,
        in_shardings=(params, split_by_batch(mesh), everywhere),
        # Replicated, as a process can fetch only what lies on its own devices.
        out_shardings=everywhere,
    )


def make_recovery(
    config: ModelConfig, task: Task, mesh: Mesh, jitted: Any = None
) -> Callable[[Any, Split, int], dict[str, float]]:
    """Returns a function that runs a batch through a reversible pair, and backwards again.

    Args:
      config: the model's config.
      task: how batches become inputs.
      mesh: as for `make_eval_step`.
      jitted: what `jit_recovery` returned for a task that differs in its fold alone.

    Returns:
      (params, split, batch size) -> the metric reversible_error of the split's first batch,
      |y_0' - y_0| / |y_0| of the state y_0' that is recovered; empty without a pair. It warns where
      the error is above 1e-3: gradients under adjoint 'reversible' are then not exact.
    """
    if config.depth.reversible is None:
        return lambda params, data, batch_size: {}

    step = jit_recovery(config, task, mesh) if jitted is None else jitted
    constants = task.constants()

    def recover(params: Any, data: Split, batch_size: int) -> dict[str, float]:
        size = eval_batch_size(len(data), batch_size, batch_shards(mesh))
        rows = np.arange(size) if (own := local_rows(mesh, size)) is None else own
        batch = put_batch(mesh, data.gather(np.minimum(rows, len(data) - 1)), size)
        with on_mesh(mesh, config):
            error = float(step(params, batch, constants))

        # Not 'error > LOST', as NaN is no less lost.
        if not error <= LOST and is_primary():
            warn(_not_recovered(error, config))
        return {"reversible_error": error}

    return recover


def jit_recovery(config: ModelConfig, task: Task, mesh: Mesh) -> Any:
    """Returns the jitted function (params, batch, constants) -> the error, float32 []."""
    model = make_model(config)

    def recover(params: Any, batch: Batch, constants: Arrays) -> jax.Array:
        inputs = task.inputs(batch, constants)
        _, aux = model.apply({"params": params}, *inputs, mutable=["ode", "recovered"])

        # Of several stacks the largest.
        errors: Any = jax.tree.leaves(aux["recovered"])
        return jnp.stack(errors).max().astype(jnp.float32)

    return _jit(recover, config, mesh)


def _not_recovered(error: float, config: ModelConfig) -> str:
    mood = "are" if config.depth.adjoint == "reversible" else "would be"
    return (
        f"the reversible pair recovers the state at depth 0 to {error:.1e} of it ({LOST:g} at "
        f"most): gradients under config.depth.adjoint='reversible' {mood} not exact either, and "
        "those under 'checkpoint' are; take 'checkpoint', config.depth.solver='rk4', "
        "more steps, fewer layers, or config.model.dtype='float32'"
    )


def score(
    params: Any,
    data: Split,
    batch_size: int,
    mesh: Mesh,
    step: Callable[[Any, Batch], Metrics],
    workers: int = 0,
) -> dict[str, np.ndarray]:
    """Scores every example of a split once, in the split's order.

    The result does not depend on the batch size, the mesh or the number of processes, except for
    rounding and for solves whose adaptive steps a batch shares.

    Args:
      params: the model's parameters.
      batch_size: the most examples in a batch.
      step: as `make_eval_step` returns it.
      workers: processes that gather batches; with 0, a thread of this process does.

    Returns:
      The scores of each example, float32 [N], as `make_eval_step` says.
    """
    # Equal batches, as another size would compile another program; the last is padded with copies
    # of the last example, cut off below.
    size = eval_batch_size(len(data), batch_size, batch_shards(mesh))
    batches = eval_batches(data, size, local_rows(mesh, size), workers)

    # The next batch is dispatched before the last one's scores are read.
    scores, pending = [], None
    for batch in batches:
        dispatched = step(params, put_batch(mesh, batch, size))
        if pending is not None:
            scores.append(jax.device_get(pending))
        pending = dispatched
    scores.append(jax.device_get(pending))

    return {name: np.concatenate([s[name] for s in scores])[: len(data)] for name in scores[0]}


def summarise(task: Task, scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns the metrics of a split, and warns where a loss is not finite.

    Args:
      task: the task that made the scores.
      scores: of each example, as `score` returns them.

    Returns:
      The task's metrics, loss (nats) included; nfe, a mean; failed_solves, a number of examples; of
      a reversible pair reversible_gap, a mean.
    """
    _warn_of_nonfinite(scores["loss"])
    return {
        **task.summarise(scores),
        "nfe": mean(scores["nfe"]),
        "failed_solves": float(scores["failed"].sum()),
        **{name: mean(scores[name]) for name in ("reversible_gap",) if name in scores},
    }


def _warn_of_nonfinite(losses: np.ndarray) -> None:
    # The argmax of NaN logits is class 0, so that accuracy alone would look like a number.
    nonfinite = int(np.sum(~np.isfinite(losses)))
    if nonfinite and is_primary():
        warn(
            f"the loss of {nonfinite} of {len(losses)} examples is NaN or infinite, and so are the "
            "model's logits: none of their metrics means anything, accuracy included; check the "
            "weights, or take another solver or more steps"
        )
