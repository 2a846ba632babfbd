"""Scores of the examples of a split, and the metrics of the split."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from train.data.pipeline import eval_batch_size, eval_batches
from train.data.split import Split
from train.devices.mesh import batch_shards, local_rows, put_batch
from train.devices.processes import is_primary
from train.errors import warn
from train.tasks.task import Task, mean


def score(
    params: Any, data: Split, batch_size: int, mesh: Mesh, step: Any, workers: int = 0
) -> dict[str, np.ndarray]:
    """Scores every example of a split once, in order.

    The answer does not depend on the batch size, the mesh or the number of processes but for
    rounding, and for solves whose adaptive steps a batch shares.

    Args:
      params: the model's parameters.
      data: the split.
      batch_size: the most examples a batch may hold; batches are made equal, so that the least
        filling is needed, and the filling is left out.
      mesh: the devices.
      step: a step of `make_eval_step`.
      workers: processes that gather; 0: none.

    Returns:
      The task's scores, nfe and failed of each example, float32 [N].
    """
    size = eval_batch_size(len(data), batch_size, batch_shards(mesh))
    batches = eval_batches(data, size, local_rows(mesh, size), workers)
    scores, pending = [], None
    for batch in batches:
        ahead = step(params, put_batch(mesh, batch, size))
        if pending is not None:
            scores.append(jax.device_get(pending))
        pending = ahead
    scores.append(jax.device_get(pending))
    return {name: np.concatenate([s[name] for s in scores])[: len(data)] for name in scores[0]}


def summarise(task: Task, scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns the metrics of a split.

    Args:
      task: whose scores they are.
      scores: of each example, as `score` returns them.

    Returns:
      The task's metrics, loss (nats) among them; nfe, a mean; failed_solves, a number of examples.
      Where a loss is not finite, a warning says that the metrics mean nothing.
    """
    bad = int(np.sum(~np.isfinite(scores["loss"])))
    if bad and is_primary():
        warn(
            f"the loss of {bad} of {len(scores['loss'])} examples is NaN or infinite, as the "
            "model's logits are: no metric of them means anything, accuracy among them; look at "
            "the weights, or take another solver or more steps"
        )

    return {
        **task.summarise(scores),
        "nfe": mean(scores["nfe"]),
        "failed_solves": float(scores["failed"].sum()),
    }
