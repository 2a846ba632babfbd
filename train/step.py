"""The jitted steps: one of training, one of evaluation."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from odeformer import ViT, ViTConfig
from train.config import RunConfig
from train.data.arrays import Images
from train.data.augment import random_affine
from train.losses import cross_entropy
from train.mesh import replicated, split_by_batch
from train.optimizer import average, make_optimizer, make_schedule
from train.state import TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_train_step(
    config: RunConfig, data: Images, mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns the jitted train step (state, batch) -> (state, metrics); the state is donated.

    Metrics are float32 scalars: loss, accuracy, grad_norm, learning_rate, nfe (evaluations of all
    terms in one forward pass) and failed_solves (solves that did not reach their end).
    """
    model = ViT(config.model)
    optimizer = make_optimizer(config.optimizer, config.train_steps)
    schedule = make_schedule(config.optimizer, config.train_steps)

    def loss_fn(params, images, labels, key):
        logits, aux = model.apply(
            {"params": params}, images, train=True, rngs={"dropout": key}, mutable=["ode"]
        )
        loss = cross_entropy(logits, labels, config.optimizer.label_smoothing).mean()
        accuracy = (logits.argmax(-1) == labels).mean()
        return loss, {"loss": loss, "accuracy": accuracy, **_solve_metrics(aux["ode"])}

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        dropout_key, augment_key = jax.random.split(step_key)
        sample_keys = jax.vmap(lambda index: jax.random.fold_in(augment_key, index))(batch["index"])
        images = random_affine(config.data.augment, sample_keys, data.to_unit(batch["image"]))
        grads, metrics = jax.grad(loss_fn, has_aux=True)(
            state.params, data.standardise(images), batch["label"], dropout_key
        )
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
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(whole, split_by_batch(mesh)),
        out_shardings=(whole, whole),
    )


def make_eval_step(config: ViTConfig, data: Images, mesh: Mesh) -> Callable[[Any, Batch], Metrics]:
    """Returns the jitted (params, batch) -> sums over the batch, weighted by batch['weight'].

    Metrics: loss (nats) and correct summed over the samples, weight their number; nfe and
    failed_solves of the batch.
    """
    model = ViT(config)

    def eval_step(params: Any, batch: Batch) -> Metrics:
        images = data.standardise(data.to_unit(batch["image"]))
        logits, aux = model.apply({"params": params}, images, mutable=["ode"])
        weight = batch["weight"]
        correct = logits.argmax(-1) == batch["label"]
        return {
            "loss": (cross_entropy(logits, batch["label"]) * weight).sum(),
            "correct": (correct * weight).sum(),
            "weight": weight.sum(),
            **_solve_metrics(aux["ode"]),
        }

    whole = replicated(mesh)
    return jax.jit(eval_step, in_shardings=(whole, split_by_batch(mesh)), out_shardings=whole)


def _solve_metrics(ode: Mapping[str, jax.Array]) -> Metrics:
    """nfe: evaluations of all terms over the depth, the mean over samples where they differ."""
    nfe = ode["nfe"]
    if nfe.ndim == 3:  # [G, B, terms]
        nfe = nfe.mean(axis=1)
    return {
        "nfe": nfe.sum().astype(jnp.float32),
        "failed_solves": (ode["result"] != 0).sum().astype(jnp.float32),
    }
