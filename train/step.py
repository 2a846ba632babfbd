"""The jitted train step: one batch, learnt from or skipped."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from train.adapters import abstract_base
from train.config.run import RunConfig
from train.devices.mesh import on_mesh, replicated, split_by_batch
from train.gradient import make_gradient, where
from train.optimizer import frozen_mask, make_schedule, update_ema
from train.state import TrainState, abstract_state, judge, state_shardings
from train.tasks.task import Arrays, Batch, Keys, Metrics, Task


def make_train_step(
    config: RunConfig,
    optimizer: optax.GradientTransformation,
    task: Task,
    mesh: Mesh,
    jitted: Any = None,
    base: Any = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns the jitted train step (state, batch) -> (state, metrics); the state is donated.

    How a sample is prepared is a function of the seed, the sample's index and its visit; dropout
    and mixing are functions of the seed, the step and the sample's place in the batch. None of it
    depends on the mesh. A batch that `state.judge` refuses is skipped: it changes nothing of the
    state but the guard's counts.

    Args:
      task: how batches become a loss.
      mesh: the batch is split over its devices, the state as `abstract_state` says.
      jitted: what `jit_train_step` returned for a run that differs in its seed and fold alone.
      base: the frozen weights that adapters adapt, as `abstract_base` says; None without
        adapters.

    Returns:
      The step. A batch holds what the task says, 'index' and 'draw' int32 [B] included. Its metrics
      are scalars, float32 unless they say otherwise, and means over the parts or shards of a batch
      that has several:
        loss: the task's, in nats, without what regularises; and what else the task logs.
        grad_norm, learning_rate: of this step.
        nfe: evaluations of all terms in one forward pass.
        failed_solves: groups whose solve did not reach its end.
        reversible_gap: |y - z| / |y|, of a reversible pair.
        kinetic_energy, error_estimate: where they are regularised, before their weights.
        skipped, skipped_in_a_row: int32, the batches skipped so far.
    """
    step = jit_train_step(config, optimizer, task, mesh) if jitted is None else jitted
    constants = _constants(config, task)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with on_mesh(mesh, config.model):
            return step(state, batch, constants, base)

    return train_step


def lower_train_step(
    config: RunConfig,
    optimizer: optax.GradientTransformation,
    task: Task,
    mesh: Mesh,
    batch: Mapping[str, Any],
    platform: str | None = None,
) -> jax.stages.Lowered:
    """Returns the train step, traced and lowered for devices that need not exist here.

    Args:
      task: how batches become a loss.
      batch: an example of a batch, whose leading axis may have any size.
      platform: the platform of the mesh's devices, such as 'tpu'; None for this machine's.
    """
    step, constants = jit_train_step(config, optimizer, task, mesh), _constants(config, task)

    split = split_by_batch(mesh)
    shapes = {
        name: jax.ShapeDtypeStruct((config.batch_size, *x.shape[1:]), x.dtype, sharding=split)
        for name, x in batch.items()
    }
    state, base = abstract_state(config, optimizer, mesh), abstract_base(config, mesh)

    with on_mesh(mesh, config.model):
        traced = step.trace(state, shapes, constants, base)
        return traced.lower(lowering_platforms=None if platform is None else (platform,))


def jit_train_step(
    config: RunConfig, optimizer: optax.GradientTransformation, task: Task, mesh: Mesh
) -> Any:
    """Returns the jitted step (state, batch, constants, base), for runs of any seed and fold."""
    schedule = make_schedule(config.optimizer, config.train_steps)
    gradient = make_gradient(config, task)

    def learn(grads: Any, state: TrainState) -> TrainState:
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        ema, decay = state.ema, config.optimizer.ema_decay
        if decay is not None:
            ema = update_ema(decay, state.step, ema, params)

        # Without this, rounding would move the average of parameters that stand still.
        if config.optimizer.freeze:
            mask = frozen_mask(config.optimizer, params)
            params, ema = (where(mask, state.params, params), where(mask, state.ema, ema))

        return TrainState(state.step + 1, params, opt_state, ema, state.guard)

    def train_step(
        state: TrainState, batch: Batch, constants: Arrays, base: Any
    ) -> tuple[TrainState, Metrics]:
        dropout_key, keys = random_keys(constants["seed"], state.step, batch)
        inputs, targets = task.prepare(batch, keys, constants)
        grads, metrics = gradient(state.params, inputs, targets, dropout_key, base)

        grad_norm = optax.global_norm(grads)
        accepted, guard = judge(
            state.guard, state.step, metrics["loss"], grad_norm, config.guard.sigmas
        )

        # A skipped batch does not count as a step: schedule, moments and average stand still.
        learnt = jax.lax.cond(accepted, functools.partial(learn, grads), lambda state: state, state)

        metrics |= {
            "grad_norm": grad_norm,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "skipped": guard.skipped,
            "skipped_in_a_row": guard.consecutive,
        }
        return dataclasses.replace(learnt, guard=guard), metrics

    everywhere = replicated(mesh)
    state = state_shardings(config, optimizer, mesh)
    base = jax.tree.map(lambda leaf: leaf.sharding, abstract_base(config, mesh))
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(state, split_by_batch(mesh), everywhere, base),
        out_shardings=(state, everywhere),
    )


def _constants(config: RunConfig, task: Task) -> dict[str, Any]:
    """The task's arrays and the seed, as the step takes them."""
    # As arguments, not constants of the program: runs that differ in them alone share it.
    return task.constants() | {"seed": np.uint32(config.seed)}


def random_keys(seed: jax.Array, step: jax.Array, batch: Batch) -> tuple[jax.Array, Keys]:
    """Returns the step's key for dropout, and the keys of its batch."""
    dropout_key, batch_key, sample_key = jax.random.split(jax.random.key(seed), 3)
    dropout_key, batch_key = (jax.random.fold_in(key, step) for key in (dropout_key, batch_key))

    # By visit, not by step: at another batch size a sample comes at another step, and its visits
    # stay the same.
    sample_keys = jax.vmap(
        lambda visit, index: jax.random.fold_in(jax.random.fold_in(sample_key, visit), index)
    )(batch["draw"], batch["index"])

    return dropout_key, Keys(batch_key, sample_keys)
