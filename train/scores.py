"""The jitted evaluation step, the scores of a split's examples, and the metrics of the split."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from odeformer import ModelConfig, example_inputs, make_model
from train.data.pipeline import eval_batch_size, eval_batches
from train.data.split import Split
from train.devices.mesh import (
    batch_shards,
    local_rows,
    on_mesh,
    parameter_shardings,
    put_batch,
    replicated,
    split_by_batch,
)
from train.devices.processes import is_primary
from train.errors import warn
from train.step import evaluations, failures
from train.tasks.task import Arrays, Batch, Metrics, Task, mean


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
      task, nfe (evaluations of all terms) and failed (1 where a solve did not reach its end).
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

        # Where the batch shares a solve, nfe and failed are scalars: each example gets them.
        size = batch["index"].shape
        return {k: jnp.broadcast_to(v, size).astype(jnp.float32) for k, v in scores.items()}

    inputs = example_inputs(config)
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    everywhere = replicated(mesh)
    return jax.jit(
        eval_step,
        in_shardings=(parameter_shardings(mesh, config, params), split_by_batch(mesh), everywhere),
        # Replicated, as a process can fetch only what lies on its own devices.
        out_shardings=everywhere,
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
      data: the split.
      batch_size: the most examples in a batch.
      mesh: the devices.
      step: as `make_eval_step` returns it.
      workers: processes that gather batches; with 0, a thread of this process does.

    Returns:
      The task's scores, nfe and failed of each example, float32 [N].
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
      The task's metrics, loss (nats) included; nfe, a mean; failed_solves, a number of examples.
    """
    _warn_of_nonfinite(scores["loss"])
    return {
        **task.summarise(scores),
        "nfe": mean(scores["nfe"]),
        "failed_solves": float(scores["failed"].sum()),
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
