"""The jitted steps: one of training, one of evaluation."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from odeformer import example_inputs, make_model
from odeformer.models.registry import ModelConfig
from train.config.run import RunConfig
from train.devices.mesh import on_mesh, parameter_shardings, replicated, split_by_batch
from train.gradient import evaluations, failures, make_gradient
from train.guard import judge
from train.optimizer import average, make_schedule
from train.state import TrainState, abstract_state, state_shardings
from train.tasks.task import Arrays, Batch, Keys, Metrics, Task


def make_train_step(
    config: RunConfig, optimizer: optax.GradientTransformation, task: Task, mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns the jitted train step (state, batch) -> (state, metrics); the state is donated.

    What is random about a sample's preparation is a function of the seed, the sample's index and
    its draw; dropout and mixing of one of the seed and the step, and of a sample's place in the
    batch. The mesh changes nothing of it. A batch that `guard.judge` refuses is skipped: the state
    behind it is the one before it, but for the guard's counts.

    Args:
      config: of the run.
      optimizer: its optimiser.
      task: what is learnt.
      mesh: the devices; the batch is split over them, and the state lies as `abstract_state` says.

    Returns:
      The step. A batch holds what the task says, 'index' and 'draw' int32 [B] among it. Metrics are
      float32 scalars: loss (nats), what else the task logs, grad_norm, learning_rate, nfe
      (evaluations of all terms in one forward pass) and failed_solves (groups whose solve did not
      reach its end), in a batch of several parts or shards means over these; and int32 scalars:
      skipped, batches so far, and skipped_in_a_row.
    """
    step, given = _jit_train_step(config, optimizer, task, mesh)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with on_mesh(mesh, config.model):
            return step(state, batch, given)

    return train_step


def lower_train_step(
    config: RunConfig,
    optimizer: optax.GradientTransformation,
    task: Task,
    mesh: Mesh,
    batch: Mapping[str, Any],
    platform: str | None = None,
) -> jax.stages.Lowered:
    """Returns the train step, traced and lowered for devices that need not be there.

    Args:
      config: of the run.
      optimizer: its optimiser.
      task: what is learnt.
      mesh: the devices.
      batch: any example of a batch, from which the shapes behind the leading axis are read.
      platform: whose program it becomes; None for that of the devices here.
    """
    step, given = _jit_train_step(config, optimizer, task, mesh)
    split = split_by_batch(mesh)
    shapes = {
        name: jax.ShapeDtypeStruct((config.batch_size, *x.shape[1:]), x.dtype, sharding=split)
        for name, x in batch.items()
    }
    state = abstract_state(config, optimizer, mesh)
    with on_mesh(mesh, config.model):
        traced = step.trace(state, shapes, given)
        return traced.lower(lowering_platforms=None if platform is None else (platform,))


def _jit_train_step(
    config: RunConfig, optimizer: optax.GradientTransformation, task: Task, mesh: Mesh
) -> tuple[Any, dict[str, Any]]:
    """The step (state, batch, given), and what it is given."""
    schedule = make_schedule(config.optimizer, config.train_steps)
    gradient = make_gradient(config, task)

    def train_step(state: TrainState, batch: Batch, given: Arrays) -> tuple[TrainState, Metrics]:
        dropout_key, keys = random_keys(given["seed"], state.step, batch)
        inputs, targets = task.prepare(batch, keys, given)
        grads, metrics = gradient(state.params, inputs, targets, dropout_key)
        grad_norm = optax.global_norm(grads)
        accepted, guard = judge(
            state.guard, state.step, metrics["loss"], grad_norm, config.guard.sigmas
        )
        learn = functools.partial(_learn, optimizer, config.optimizer.ema_decay, grads)
        learnt = jax.lax.cond(accepted, learn, lambda state: state, state)
        metrics |= {
            "grad_norm": grad_norm,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "skipped": guard.skipped,
            "skipped_in_a_row": guard.consecutive,
        }
        return dataclasses.replace(learnt, guard=guard), metrics

    whole = replicated(mesh)
    shardings = state_shardings(config, optimizer, mesh)
    step = jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(shardings, split_by_batch(mesh), whole),
        out_shardings=(shardings, whole),
    )
    return step, task.constants() | {"seed": np.uint32(config.seed)}


def _learn(
    optimizer: optax.GradientTransformation, ema_decay: float | None, grads: Any, state: TrainState
) -> TrainState:
    """The state behind a batch that is learnt from."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema_decay is not None:
        ema = average(ema_decay, state.step, ema, params)
    return TrainState(state.step + 1, params, opt_state, ema, state.guard)


def random_keys(seed: jax.Array, step: jax.Array, batch: Batch) -> tuple[jax.Array, Keys]:
    """Returns the step's key for dropout, and the keys of its batch."""
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
      mesh: the devices; the batch is split over them, the parameters as in training.

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
            "nfe": evaluations(aux["ode"]),
            "failed": failures(aux["ode"]).any(axis=0),
        }
        size = batch["index"].shape
        return {k: jnp.broadcast_to(v, size).astype(jnp.float32) for k, v in scores.items()}

    model_inputs = example_inputs(config)
    params = jax.eval_shape(model.init, jax.random.key(0), *model_inputs)["params"]
    split, whole = split_by_batch(mesh), replicated(mesh)
    step = jax.jit(
        eval_step,
        in_shardings=(parameter_shardings(mesh, config, params), split, whole),
        out_shardings=whole,
    )
    given = task.constants()

    def score_batch(params: Any, batch: Batch) -> Metrics:
        with on_mesh(mesh, config):
            return step(params, batch, given)

    return score_batch
