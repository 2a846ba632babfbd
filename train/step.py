"""The jitted train step, and in it the gradient: of the whole batch, in parts, or by shard."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from odeformer import make_model, sharding
from train.config.regularise import regularised
from train.config.run import RunConfig
from train.devices.mesh import BATCH_AXES, on_mesh, replicated, split_by_batch
from train.optimizer import frozen_mask, make_schedule, update_ema
from train.state import TrainState, abstract_state, judge, state_shardings
from train.tasks.task import Arrays, Batch, Keys, Metrics, Task

Gradient = Callable[..., tuple[Any, Metrics]]


def make_train_step(
    config: RunConfig,
    optimizer: optax.GradientTransformation,
    task: Task,
    mesh: Mesh,
    jitted: Any = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns the jitted train step (state, batch) -> (state, metrics); the state is donated.

    How a sample is prepared is a function of the seed, the sample's index and its visit; dropout
    and mixing are functions of the seed, the step and the sample's place in the batch. None of it
    depends on the mesh. A batch that `state.judge` refuses is skipped: it changes nothing of the
    state but the guard's counts.

    Args:
      config: the run's config.
      optimizer: the run's optimiser.
      task: how batches become a loss.
      mesh: the batch is split over its devices, the state as `abstract_state` says.
      jitted: what `jit_train_step` returned for a run that differs in its seed and fold alone.

    Returns:
      The step. A batch holds what the task says, 'index' and 'draw' int32 [B] included. Metrics are
      float32 scalars: loss (nats), what else the task logs, grad_norm, learning_rate, nfe
      (evaluations of all terms in one forward pass), failed_solves (groups whose solve did not
      reach its end), of a reversible pair reversible_gap (|y - z| / |y|), kinetic_energy and
      error_estimate where they are regularised (before their weights; the loss is the task's,
      without them), means over the parts or shards of a batch that has several; and int32 scalars:
      skipped, batches so far, and skipped_in_a_row.
    """
    step = jit_train_step(config, optimizer, task, mesh) if jitted is None else jitted
    constants = _constants(config, task)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with on_mesh(mesh, config.model):
            return step(state, batch, constants)

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
      config: the run's config.
      optimizer: the run's optimiser.
      task: how batches become a loss.
      mesh: the devices.
      batch: an example of a batch, whose leading axis may have any size.
      platform: of the mesh's devices, e.g. 'tpu'; None for the platform of this machine.
    """
    step, constants = jit_train_step(config, optimizer, task, mesh), _constants(config, task)

    split = split_by_batch(mesh)
    shapes = {
        name: jax.ShapeDtypeStruct((config.batch_size, *x.shape[1:]), x.dtype, sharding=split)
        for name, x in batch.items()
    }
    state = abstract_state(config, optimizer, mesh)

    with on_mesh(mesh, config.model):
        traced = step.trace(state, shapes, constants)
        return traced.lower(lowering_platforms=None if platform is None else (platform,))


def jit_train_step(
    config: RunConfig, optimizer: optax.GradientTransformation, task: Task, mesh: Mesh
) -> Any:
    """Returns the jitted step (state, batch, constants); neither seed nor fold is part of it."""
    schedule = make_schedule(config.optimizer, config.train_steps)
    gradient = make_gradient(config, task)

    def learn(grads: Any, state: TrainState) -> TrainState:
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        ema, decay = state.ema, config.optimizer.ema_decay
        if decay is not None:
            ema = update_ema(decay, state.step, ema, params)

        # Else rounding would move the average of what does not move.
        if config.optimizer.freeze:
            mask = frozen_mask(config.optimizer, params)
            params, ema = (_where(mask, state.params, params), _where(mask, state.ema, ema))

        return TrainState(state.step + 1, params, opt_state, ema, state.guard)

    def train_step(
        state: TrainState, batch: Batch, constants: Arrays
    ) -> tuple[TrainState, Metrics]:
        dropout_key, keys = random_keys(constants["seed"], state.step, batch)
        inputs, targets = task.prepare(batch, keys, constants)
        grads, metrics = gradient(state.params, inputs, targets, dropout_key)

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
    shardings = state_shardings(config, optimizer, mesh)
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(shardings, split_by_batch(mesh), everywhere),
        out_shardings=(shardings, everywhere),
    )


def _constants(config: RunConfig, task: Task) -> dict[str, Any]:
    """The step's last argument."""
    # The seed too, like the task's arrays: runs that differ in their seed alone share a program.
    return task.constants() | {"seed": np.uint32(config.seed)}


def random_keys(seed: jax.Array, step: jax.Array, batch: Batch) -> tuple[jax.Array, Keys]:
    """Returns the step's key for dropout, and the keys of its batch."""
    dropout_key, batch_key, sample_key = jax.random.split(jax.random.key(seed), 3)
    dropout_key, batch_key = (jax.random.fold_in(key, step) for key in (dropout_key, batch_key))

    # The step has no part in a sample's key: it would change with the batch size, the visit not.
    sample_keys = jax.vmap(
        lambda visit, index: jax.random.fold_in(jax.random.fold_in(sample_key, visit), index)
    )(batch["draw"], batch["index"])

    return dropout_key, Keys(batch_key, sample_keys)


def make_gradient(config: RunConfig, task: Task) -> Gradient:
    """Returns (params, inputs, targets, dropout key) -> (gradient, metrics of the loss).

    Under mode 'jit' the compiler splits one program over the mesh. Under 'shard_map' each shard of
    the batch runs a program of its own, so that its adaptive solves take their own steps and wait
    for no other shard; the shards meet once, where their gradients are added up. With accumulation
    the batch is processed in parts, one after the other, in the memory of one part. Either way each
    loss is weighted by the number of examples or tokens that it is the mean of.
    """
    model = make_model(regularised(config.model, config.regularise))
    weights = config.regularise.weights

    def loss_fn(params, inputs, targets, key, scale=1.0):
        logits, aux = model.apply(
            {"params": params}, *inputs, train=True, rngs={"dropout": key}, mutable=["ode"]
        )
        loss, metrics = task.loss(logits, targets)

        counts = {
            "nfe": evaluations(aux["ode"]).mean(),
            "failed_solves": failures(aux["ode"]).sum().astype(jnp.float32),
        }
        ode: Any = aux["ode"]
        if "gap" in ode:
            counts["reversible_gap"] = gaps(ode).mean()
        sums = {_SUMS[name]: scale * along_depth(ode[name]) for name in weights}
        penalties = [weight * sums[_SUMS[name]] for name, weight in weights.items()]
        return sum(penalties, loss), {"loss": loss, **counts, **sums, **metrics}

    is_partial = bool(config.optimizer.freeze)
    mask = functools.partial(frozen_mask, config.optimizer)
    gradient = _of_trained(loss_fn, mask) if is_partial else jax.grad(loss_fn, has_aux=True)
    if config.parallel.accumulate > 1:
        gradient = _in_parts(gradient, task, config.parallel.accumulate, bool(weights))

    if config.parallel.mode == "shard_map":
        gradient = _by_shard(gradient, task, bool(weights))
    return _with_zeros(gradient, mask) if is_partial else gradient


def _of_trained(loss_fn: Callable[..., Any], mask: Callable[[Any], Any]) -> Gradient:
    """The gradient that has None for what is frozen: it is neither computed nor communicated."""

    def gradient(params, *args):
        frozen = mask(params)
        trained = jax.tree.map(lambda is_frozen, x: None if is_frozen else x, frozen, params)

        def loss(trained):
            return loss_fn(_where(frozen, params, trained), *args)

        return jax.grad(loss, has_aux=True)(trained)

    return gradient


def _with_zeros(gradient: Gradient, mask: Callable[[Any], Any]) -> Gradient:
    """The gradient with zeros in place of None."""

    def completed(params, *args):
        grads, metrics = gradient(params, *args)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return _where(mask(params), zeros, grads), metrics

    return completed


def _where(mask: Any, chosen: Any, other: Any) -> Any:
    """The leaves of a tree where a mask is True, and of another one elsewhere; None of None."""
    if chosen is None:
        return None

    pairs = zip(jax.tree.leaves(mask), jax.tree.leaves(chosen), strict=True)
    rest = jax.tree.leaves(other, is_leaf=lambda x: x is None)
    leaves = [a if is_chosen else b for (is_chosen, a), b in zip(pairs, rest, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(chosen), leaves)


# The sums along the flow, and the metrics that they are.
_SUMS = {"kinetic": "kinetic_energy", "error": "error_estimate"}


def along_depth(sums_GB: jax.Array) -> jax.Array:
    """Returns a sum along the whole depth, the mean over the examples: float32 []."""
    return sums_GB.sum(axis=0).mean().astype(jnp.float32)


def _in_parts(gradient: Gradient, task: Task, parts: int, has_sums: bool) -> Gradient:
    """The gradient of a batch that is processed in parts."""

    def split(x: jax.Array) -> jax.Array:
        # Rows are dealt out in turn: a part has as many rows of each shard as any other part.
        x = jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)
        return sharding.constrain(x, (None, "batch", *(None,) * (x.ndim - 2)))

    def accumulated(params, inputs, targets, key, scale=1.0):
        xs = (jnp.arange(parts), *jax.tree.map(split, (inputs, targets)))
        mean = jax.vmap(task.weight)(xs[2]).mean() if has_sums else None

        def add(total, xs):
            part, inputs, targets = xs

            # Sums are means over examples, of which parts have equally many, whatever they weigh.
            scales = () if mean is None else (scale * mean / task.weight(targets),)
            new = gradient(params, inputs, targets, jax.random.fold_in(key, part), *scales)

            weight = task.weight(targets)
            return jax.tree.map(lambda a, b: a + weight * b, total, (*new, 1.0)), None

        first = jax.tree.map(lambda x: x[0], xs[1:])

        shapes = jax.eval_shape(gradient, params, *first, key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (*shapes, jnp.float32(0)))

        (*total, weight), _ = jax.lax.scan(add, zeros, xs)
        return jax.tree.map(lambda x: x / weight, tuple(total))

    return accumulated


def _by_shard(gradient: Gradient, task: Task, has_sums: bool) -> Gradient:
    """The gradient of a batch whose shards compute theirs independently, on the active mesh."""

    def shard(params, inputs, targets, key):
        weight = task.weight(targets)
        scales = (jax.lax.pmean(weight, BATCH_AXES) / weight,) if has_sums else ()
        found = gradient(params, inputs, targets, key, *scales)
        mine = jax.tree.map(lambda x: weight * x, found)

        # Shards may hold different numbers of tokens, so the mean is a weighted one.
        total, weights = jax.lax.psum((mine, weight), BATCH_AXES)
        return jax.tree.map(lambda x: x / weights, total)

    replicated, split = PartitionSpec(), PartitionSpec(BATCH_AXES)
    return jax.shard_map(
        shard,
        in_specs=(replicated, split, split, replicated),
        out_specs=replicated,
        check_vma=False,  # which diffrax's loops do not pass (diffrax#735)
    )


def failures(ode: Mapping[str, jax.Array]) -> jax.Array:
    """Returns which solves did not reach their end: bool [G], or [G, B] per sample."""
    return jnp.not_equal(ode["result"], 0)


def gaps(ode: Mapping[str, jax.Array]) -> jax.Array:
    """Returns |y - z| / |y| of a reversible pair at depth's end: float32 [B]."""
    return ode["gap"].astype(jnp.float32)


def evaluations(ode: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the evaluations of all terms over the depth: float32 [], or [B] per sample."""
    return ode["nfe"].sum(axis=(0, -1)).astype(jnp.float32)
