"""The optimiser, as one visible chain."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from train.config.run import OptimizerConfig


def make_schedule(config: OptimizerConfig, train_steps: int) -> optax.Schedule:
    """Returns the learning rate by step: linear warm-up, then a cosine down to 0."""
    return _promoting(
        optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=config.learning_rate,
            warmup_steps=config.warmup_steps,
            decay_steps=train_steps,
        )
    )


def make_optimizer(config: OptimizerConfig, train_steps: int) -> optax.GradientTransformation:
    """Returns clipping by the global norm, then AdamW that decays what `decay_mask` names."""
    clip = (
        optax.identity()
        if config.clip_norm is None
        else optax.clip_by_global_norm(config.clip_norm)
    )
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
    """A function of optax's, which multiplies ints by floats where JAX's strict modes forbid it."""

    @functools.wraps(function)
    def promoting(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return promoting


def decay_mask(params: Any) -> Any:
    """Returns a tree of bools: which parameters weight decay acts on.

    Kernels and embeddings of tokens alone: no bias, no norm's scale, no position, no class token.
    It goes by name, for the parameters of all groups are stacked, and a stacked bias has two axes.
    """

    def is_decayed(path: tuple[Any, ...], _: Any) -> bool:
        *_, holder, name = (None, *(key.key for key in path))
        return name == "kernel" or (holder, name) == ("embedding", "embedding")

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def average(decay: float, step: jax.Array, mean: Any, params: Any) -> Any:
    """Returns the moving average of the weights behind step `step` (from 0).

    The decay grows as (1 + step) / (10 + step) until it reaches its value, so that the average
    does not remember the initial weights for long.
    """
    weight = 1 - jax.numpy.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(params, mean, weight)
