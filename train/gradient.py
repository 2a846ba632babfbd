"""The gradient of a batch's loss: of the whole batch, in parts, or independently per shard."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from odeformer import make_model, sharding
from train.config.run import RunConfig
from train.devices.mesh import BATCH_AXES
from train.tasks.task import Metrics, Task

Gradient = Callable[[Any, Any, Any, jax.Array], tuple[Any, Metrics]]


def make_gradient(config: RunConfig, task: Task) -> Gradient:
    """Returns (params, inputs, targets, dropout key) -> (gradient, metrics of the loss).

    Under mode 'jit' the compiler splits one program over the mesh. Under 'shard_map' each shard of
    the batch runs a program of its own, so that its adaptive solves take their own steps and wait
    for no other shard; the shards meet once, where their gradients are added up. With accumulation
    the batch is processed in parts, one after the other, in the memory of one part. Either way each
    loss is weighted by the number of examples or tokens that it is the mean of.
    """
    model = make_model(config.model)

    def loss_fn(params, inputs, targets, key):
        logits, aux = model.apply(
            {"params": params}, *inputs, train=True, rngs={"dropout": key}, mutable=["ode"]
        )
        loss, metrics = task.loss(logits, targets)

        counts = {
            "nfe": evaluations(aux["ode"]).mean(),
            "failed_solves": failures(aux["ode"]).sum().astype(jnp.float32),
        }
        return loss, {"loss": loss, **counts, **metrics}

    gradient = jax.grad(loss_fn, has_aux=True)
    if config.parallel.accumulate > 1:
        gradient = _in_parts(gradient, task, config.parallel.accumulate)

    return _by_shard(gradient, task) if config.parallel.mode == "shard_map" else gradient


def _in_parts(gradient: Gradient, task: Task, parts: int) -> Gradient:
    """The gradient of a batch that is processed in parts."""

    def split(x: jax.Array) -> jax.Array:
        # Rows are dealt out in turn: a part has as many rows of each shard as any other part.
        x = jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)
        return sharding.constrain(x, (None, "batch", *(None,) * (x.ndim - 2)))

    def accumulated(params, inputs, targets, key):
        def add(total, xs):
            part, inputs, targets = xs
            new = gradient(params, inputs, targets, jax.random.fold_in(key, part))

            weight = task.weight(targets)
            return jax.tree.map(lambda a, b: a + weight * b, total, (*new, 1.0)), None

        xs = (jnp.arange(parts), *jax.tree.map(split, (inputs, targets)))
        first = jax.tree.map(lambda x: x[0], xs[1:])

        shapes = jax.eval_shape(gradient, params, *first, key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (*shapes, jnp.float32(0)))

        (*total, weight), _ = jax.lax.scan(add, zeros, xs)
        return jax.tree.map(lambda x: x / weight, tuple(total))

    return accumulated


def _by_shard(gradient: Gradient, task: Task) -> Gradient:
    """The gradient of a batch whose shards compute theirs independently, on the active mesh."""

    def shard(params, inputs, targets, key):
        weight = task.weight(targets)
        mine = jax.tree.map(lambda x: weight * x, gradient(params, inputs, targets, key))

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


def evaluations(ode: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the evaluations of all terms over the depth: float32 [], or [B] per sample."""
    return ode["nfe"].sum(axis=(0, -1)).astype(jnp.float32)
