"""The jitted steps: one of training, one of evaluation."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from odeformer import ViT, ViTConfig
from train.augment.mixing import mix
from train.augment.pipeline import augment
from train.config import RunConfig
from train.data.arrays import Split, standardise
from train.losses import cross_entropy
from train.mesh import replicated, split_by_batch
from train.optimizer import average, make_optimizer, make_schedule
from train.state import TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_train_step(
    config: RunConfig, data: Split, mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns the jitted train step (state, batch) -> (state, metrics); the state is donated.

    What is random about a sample's augmentation is a function of the seed, the sample's index and
    its draw; dropout and mixing of one of the seed and the step.

    Args:
      config: of the run.
      data: the training split, for the scale of its pixels.
      mesh: the devices; the batch is split over them, the state is whole on each.

    Returns:
      The step. A batch holds 'image' uint8 [B, H, W, C], 'label', 'index' and 'draw' int32 [B].
      Metrics are float32 scalars: loss (nats), accuracy (where labels are not mixed), grad_norm,
      learning_rate, nfe (evaluations of all terms in one forward pass) and failed_solves (groups
      whose solve did not reach its end).
    """
    model = ViT(config.model)
    optimizer = make_optimizer(config.optimizer, config.train_steps)
    schedule = make_schedule(config.optimizer, config.train_steps)
    mixed = bool(config.data.augment.mixup or config.data.augment.cutmix)

    def loss_fn(params, images, targets, labels, key):
        logits, aux = model.apply(
            {"params": params}, images, train=True, rngs={"dropout": key}, mutable=["ode"]
        )
        loss = cross_entropy(logits, targets).mean()
        metrics = {
            "loss": loss,
            "nfe": _evaluations(aux["ode"]).mean(),
            "failed_solves": _failures(aux["ode"]).sum().astype(jnp.float32),
        }
        if not mixed:
            metrics["accuracy"] = (logits.argmax(-1) == labels).mean()
        return loss, metrics

    def train_step(
        state: TrainState, batch: Batch, given: Mapping[str, jax.Array]
    ) -> tuple[TrainState, Metrics]:
        images, targets, dropout_key = _augmented(config, data, state.step, batch, given)
        grads, metrics = jax.grad(loss_fn, has_aux=True)(
            state.params, images, targets, batch["label"], dropout_key
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
    step = jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(whole, split_by_batch(mesh), whole),
        out_shardings=(whole, whole),
    )
    given = _moments(data) | {"seed": np.uint32(config.seed)}
    return lambda state, batch: step(state, batch, given)


def _augmented(
    config: RunConfig, data: Split, step: jax.Array, batch: Batch, given: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The batch as the model sees it: images, targets [B, C], and the step's key for dropout."""
    dropout_key, mix_key, augment_key = jax.random.split(jax.random.key(given["seed"]), 3)
    dropout_key, mix_key = (jax.random.fold_in(key, step) for key in (dropout_key, mix_key))
    sample_keys = jax.vmap(
        lambda draw, index: jax.random.fold_in(jax.random.fold_in(augment_key, draw), index)
    )(batch["draw"], batch["index"])
    to_model = partial(standardise, mean=given["mean"], std=given["std"])
    changes, smoothing = config.data.augment, config.optimizer.label_smoothing
    images = data.to_unit(batch["image"])
    images = augment(changes, sample_keys, images, to_model, given["mean"])
    images, targets = mix(changes, mix_key, images, batch["label"], data.classes, smoothing)
    return images, targets, dropout_key


def make_eval_step(config: ViTConfig, data: Split, mesh: Mesh) -> Callable[[Any, Batch], Metrics]:
    """Returns the jitted evaluation step (params, batch) -> scores of each example.

    Args:
      config: of the model.
      data: a split, for the scale of its pixels.
      mesh: the devices; the batch is split over them.

    Returns:
      The step. A batch holds 'image' uint8 [B, H, W, C] and 'label' int32 [B]. Scores are float32
      [B], whole on every device: loss (nats), correct (0 or 1), nfe (evaluations of all terms) and
      failed (1 where a solve did not reach its end).
    """
    model = ViT(config)

    def eval_step(params: Any, batch: Batch, given: Mapping[str, jax.Array]) -> Metrics:
        images = standardise(data.to_unit(batch["image"]), given["mean"], given["std"])
        logits, aux = model.apply({"params": params}, images, mutable=["ode"])
        scores = {
            "loss": cross_entropy(logits, batch["label"]),
            "correct": logits.argmax(-1) == batch["label"],
            "nfe": _evaluations(aux["ode"]),
            "failed": _failures(aux["ode"]).any(axis=0),
        }
        size = batch["label"].shape
        return {k: jnp.broadcast_to(v, size).astype(jnp.float32) for k, v in scores.items()}

    whole = replicated(mesh)
    shardings = (whole, split_by_batch(mesh), whole)
    step = jax.jit(eval_step, in_shardings=shardings, out_shardings=whole)
    given = _moments(data)
    return lambda params, batch: step(params, batch, given)


def _moments(data: Split) -> dict[str, np.ndarray]:
    """The pixels' mean and standard deviation, as arguments of a program.

    They and the seed are no constants of it, so that runs which differ in fold or seed alone share
    one compiled program, through JAX's compilation cache.
    """
    return {"mean": np.asarray(data.mean, np.float32), "std": np.asarray(data.std, np.float32)}


def _failures(ode: Mapping[str, jax.Array]) -> jax.Array:
    """Which solves did not reach their end: bool [G], or [G, B]."""
    return jnp.not_equal(ode["result"], 0)


def _evaluations(ode: Mapping[str, jax.Array]) -> jax.Array:
    """Evaluations of all terms over the depth: [], or [B] where samples have steps of their own."""
    return ode["nfe"].sum(axis=(0, -1)).astype(jnp.float32)
