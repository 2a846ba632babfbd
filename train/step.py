"""The jitted steps: one of training, one of evaluation."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from odeformer import make_model
from odeformer.models import ModelConfig
from train.config import RunConfig
from train.mesh import replicated, split_by_batch
from train.optimizer import average, make_optimizer, make_schedule
from train.state import TrainState
from train.tasks.task import Arrays, Batch, Keys, Metrics, Task


def make_train_step(
    config: RunConfig, task: Task, mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns the jitted train step (state, batch) -> (state, metrics); the state is donated.

    What is random about a sample's preparation is a function of the seed, the sample's index and
    its draw; dropout and mixing of one of the seed and the step.

    Args:
      config: of the run.
      task: what is learnt.
      mesh: the devices; the batch is split over them, the state is whole on each.

    Returns:
      The step. A batch holds what the task says, 'index' and 'draw' int32 [B] among it. Metrics are
      float32 scalars: loss (nats), what else the task logs, grad_norm, learning_rate, nfe
      (evaluations of all terms in one forward pass) and failed_solves (groups whose solve did not
      reach its end).
    """
    model = make_model(config.model)
    optimizer = make_optimizer(config.optimizer, config.train_steps)
    schedule = make_schedule(config.optimizer, config.train_steps)

    def loss_fn(params, inputs, targets, key):
        logits, aux = model.apply(
            {"params": params}, *inputs, train=True, rngs={"dropout": key}, mutable=["ode"]
        )
        loss, metrics = task.loss(logits, targets)
        return loss, {
            "loss": loss,
            "nfe": _evaluations(aux["ode"]).mean(),
            "failed_solves": _failures(aux["ode"]).sum().astype(jnp.float32),
            **metrics,
        }

    def train_step(state: TrainState, batch: Batch, given: Arrays) -> tuple[TrainState, Metrics]:
        dropout_key, keys = _random_keys(given["seed"], state.step, batch)
        inputs, targets = task.prepare(batch, keys, given)
        grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, inputs, targets, dropout_key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        ema, decay = state.ema, config.optimizer.ema_decay
        if decay is not None:
            ema = average(decay, state.step, ema, params)
        metrics |= {
            "grad_norm": optax.global_norm(grads),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    whole = replicated(mesh)
    step = jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(whole, split_by_batch(mesh), whole),
        out_shardings=(whole, whole),
    )
    given = task.constants() | {"seed": np.uint32(config.seed)}
    return lambda state, batch: step(state, batch, given)


def _random_keys(seed: jax.Array, step: jax.Array, batch: Batch) -> tuple[jax.Array, Keys]:
    """The step's key for dropout, and the keys of its batch."""
    dropout_key, batch_key, sample_key = jax.random.split(jax.random.key(seed), 3)
    dropout_key, batch_key = (jax.random.fold_in(key, step) for key in (dropout_key, batch_key))
    sample_keys = jax.vmap(
        lambda draw, index: jax.random.fold_in(jax.random.fold_in(sample_key, draw), index)
    )(batch["draw"], batch["index"])
    return dropout_key, Keys(batch_key, sample_keys)


def make_eval_step(config: ModelConfig, task: Task, mesh: Mesh) -> Callable[[Any, Batch], Metrics]:
    """Returns the jitted evaluation step (params, batch) -> scores of each example.

    Args:
      config: of the model.
      task: what was learnt.
      mesh: the devices; the batch is split over them.

    Returns:
      The step. A batch holds what the task says. Scores are float32 [B], whole on every device:
      those of the task, nfe (evaluations of all terms) and failed (1 where a solve did not reach
      its end).
    """
    model = make_model(config)

    def eval_step(params: Any, batch: Batch, given: Arrays) -> Metrics:
        logits, aux = model.apply({"params": params}, *task.inputs(batch, given), mutable=["ode"])
        scores = {
            **task.scores(logits, batch, given),
            "nfe": _evaluations(aux["ode"]),
            "failed": _failures(aux["ode"]).any(axis=0),
        }
        size = batch["index"].shape
        return {k: jnp.broadcast_to(v, size).astype(jnp.float32) for k, v in scores.items()}

    whole = replicated(mesh)
    shardings = (whole, split_by_batch(mesh), whole)
    step = jax.jit(eval_step, in_shardings=shardings, out_shardings=whole)
    given = task.constants()
    return lambda params, batch: step(params, batch, given)


def _failures(ode: Mapping[str, jax.Array]) -> jax.Array:
    """Which solves did not reach their end: bool [G], or [G, B]."""
    return jnp.not_equal(ode["result"], 0)


def _evaluations(ode: Mapping[str, jax.Array]) -> jax.Array:
    """Evaluations of all terms over the depth: [], or [B] where samples have steps of their own."""
    return ode["nfe"].sum(axis=(0, -1)).astype(jnp.float32)
