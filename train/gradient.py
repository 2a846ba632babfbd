"""The gradient of a loss: of the whole batch, in parts, or by shard; without what is frozen."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from odeformer import make_model, sharding
from train.adapters import adapted
from train.config.regularise import regularised
from train.config.run import RunConfig
from train.devices.mesh import BATCH_AXES
from train.optimizer import frozen_mask
from train.tasks.task import Metrics, Task

Gradient = Callable[..., tuple[Any, Metrics]]

# The metrics that report the sums along the flow, by the sums' names.
_SUMS = {"kinetic": "kinetic_energy", "error": "error_estimate"}


def make_gradient(config: RunConfig, task: Task) -> Gradient:
    """Returns (params, inputs, targets, dropout key, base=None) -> (gradient, metrics of the loss).

    Under mode 'jit' the compiler splits one program over the mesh. Under 'shard_map' each shard of
    the batch runs a program of its own, so that its adaptive solves take their own steps and wait
    for no other shard; the shards meet once, where their gradients are added up. With accumulation
    the batch is processed in parts, one after the other, in the memory of one part. Either way each
    loss is weighted by the number of examples or tokens that it is the mean of.

    The base is the frozen weights that adapters adapt: an argument without a gradient.
    """
    model = make_model(regularised(config.model, config.regularise))
    weights = config.regularise.weights

    # sum_scale undoes, for the sums, the weight by which parts or shards are averaged.
    def loss_fn(params, inputs, targets, key, base=None, sum_scale=1.0):
        variables = {"params": params} if base is None else adapted(config, params, base)
        logits, aux = model.apply(
            variables, *inputs, train=True, rngs={"dropout": key}, mutable=["ode"]
        )
        loss, metrics = task.loss(logits, targets)

        ode: Any = aux["ode"]
        counts = {
            "nfe": evaluations(ode).mean(),
            "failed_solves": failures(ode).sum().astype(jnp.float32),
        }
        if "gap" in ode:
            counts["reversible_gap"] = gaps(ode).mean()

        sums = {_SUMS[name]: sum_scale * along_depth(ode[name]) for name in weights}
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
    """The gradient with None for frozen parameters: theirs is not computed or communicated."""

    def gradient(params, *args):
        frozen = mask(params)
        trained = jax.tree.map(lambda is_frozen, x: None if is_frozen else x, frozen, params)

        def loss(trained):
            return loss_fn(where(frozen, params, trained), *args)

        return jax.grad(loss, has_aux=True)(trained)

    return gradient


def _with_zeros(gradient: Gradient, mask: Callable[[Any], Any]) -> Gradient:
    """The gradient with zeros in place of None."""

    def completed(params, *args):
        grads, metrics = gradient(params, *args)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return where(mask(params), zeros, grads), metrics

    return completed


def where(mask: Any, chosen: Any, other: Any) -> Any:
    """Returns a tree of `chosen`'s leaves where the mask is True, else `other`'s; None for None."""
    if chosen is None:
        return None

    pairs = zip(jax.tree.leaves(mask), jax.tree.leaves(chosen), strict=True)
    rest = jax.tree.leaves(other, is_leaf=lambda x: x is None)
    leaves = [a if is_chosen else b for (is_chosen, a), b in zip(pairs, rest, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(chosen), leaves)


def along_depth(sums_GB: jax.Array) -> jax.Array:
    """Returns a sum along the whole depth, averaged over the examples: float32 []."""
    return sums_GB.sum(axis=0).mean().astype(jnp.float32)


def _in_parts(gradient: Gradient, task: Task, parts: int, has_sums: bool) -> Gradient:
    """The gradient of a batch that is processed in parts, each weighted as the task says."""

    def split(x: jax.Array) -> jax.Array:
        # Rows are dealt out in turn: a part has as many rows of each shard as any other part.
        x = jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)
        return sharding.constrain(x, (None, "batch", *(None,) * (x.ndim - 2)))

    def accumulated(params, inputs, targets, key, base=None, sum_scale=1.0):
        xs = (jnp.arange(parts), *jax.tree.map(split, (inputs, targets)))
        mean_weight = jax.vmap(task.weight)(xs[2]).mean() if has_sums else None

        def add(total, xs):
            part, inputs, targets = xs

            # Sums are means over examples, and all parts have as many examples, but not as many
            # tokens: this undoes the weight below.
            weight = task.weight(targets)
            scales = () if mean_weight is None else (sum_scale * mean_weight / weight,)
            new = gradient(params, inputs, targets, jax.random.fold_in(key, part), base, *scales)
            return jax.tree.map(lambda a, b: a + weight * b, total, (*new, 1.0)), None

        first = jax.tree.map(lambda x: x[0], xs[1:])
        shapes = jax.eval_shape(gradient, params, *first, key, base)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (*shapes, jnp.float32(0)))

        (*total, weight), _ = jax.lax.scan(add, zeros, xs)
        return jax.tree.map(lambda x: x / weight, tuple(total))

    return accumulated


def _by_shard(gradient: Gradient, task: Task, has_sums: bool) -> Gradient:
    """The gradient of a batch whose shards compute theirs independently, on the active mesh."""

    def shard(params, inputs, targets, key, base):
        weight = task.weight(targets)

        # As for parts: shards have equally many examples, but not equally many tokens.
        scales = (jax.lax.pmean(weight, BATCH_AXES) / weight,) if has_sums else ()
        found = gradient(params, inputs, targets, key, base, *scales)
        mine = jax.tree.map(lambda x: weight * x, found)

        # Shards may hold different numbers of tokens, so the mean is a weighted one.
        total, weights = jax.lax.psum((mine, weight), BATCH_AXES)
        return jax.tree.map(lambda x: x / weights, total)

    replicated, split = PartitionSpec(), PartitionSpec(BATCH_AXES)
    mapped = jax.shard_map(
        shard,
        in_specs=(replicated, split, split, replicated, replicated),
        out_specs=replicated,
        check_vma=False,  # which diffrax's loops do not pass (diffrax#735)
    )
    return lambda params, inputs, targets, key, base=None: mapped(
        params, inputs, targets, key, base
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
