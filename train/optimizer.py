"""The optimiser, as one visible chain."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from train.config.run import OptimizerConfig


def make_schedule(config: OptimizerConfig, train_steps: int) -> optax.Schedule:
    """Returns the learning rate by step: linear warm-up, then a cosine down to 0."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=train_steps,
    )
    return _promoting(schedule)


def make_optimizer(config: OptimizerConfig, train_steps: int) -> optax.GradientTransformation:
    """Returns clipping by the global norm, then AdamW that decays what `decay_mask` selects."""
    clip = optax.identity()
    if config.clip_norm is not None:
        clip = optax.clip_by_global_norm(config.clip_norm)

    adamw = optax.adamw(
        make_schedule(config, train_steps),
        b1=config.b1,
        b2=config.b2,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )

    chain = optax.chain(clip, adamw)
    return chain._replace(update=_promoting(chain.update))


def _promoting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Runs optax, which mixes ints and floats, even under JAX's strict dtype promotion."""

    @functools.wraps(function)
    def promoting(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return promoting


def decay_mask(params: Any) -> Any:
    """Returns a tree of bools: True for kernels and token embeddings, which weight decay acts on.

    Biases, the norms' scales, positions and class tokens do not decay.
    """

    # By name, as the number of axes says nothing: the parameters of all groups are stacked, and a
    # stacked bias has two axes like a kernel.
    def is_decayed(path: tuple[Any, ...], _: Any) -> bool:
        *_, module, name = (None, *(key.key for key in path))
        return name == "kernel" or (module, name) == ("embedding", "embedding")

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def update_ema(decay: float, step: jax.Array, ema: Any, params: Any) -> Any:
    """Returns the exponential moving average of the weights after step `step` (from 0).

        ema <- d * ema + (1 - d) * params,   d = min(decay, (1 + step) / (10 + step))

    Source: `num_updates` of TensorFlow's ExponentialMovingAverage.
    """
    # With the constant decay alone the average would remember the initial weights for thousands of
    # steps: 0.9999^10,000 is still 0.37.
    weight = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(params, ema, weight)
