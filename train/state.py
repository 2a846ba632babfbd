"""What a run changes from step to step."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Sharding

from odeformer import example_inputs, make_model
from train.config import RunConfig


@flax.struct.dataclass
class TrainState:
    """The state of a run; random keys are functions of the seed and the step, and not in it."""

    step: jax.Array  # int32: steps taken
    params: Any
    opt_state: Any
    ema: Any | None  # the weights' moving average, where the run keeps one

    @property
    def eval_params(self) -> Any:
        """The weights to evaluate with: the average where there is one."""
        return self.params if self.ema is None else self.ema


def make_init(
    config: RunConfig, optimizer: optax.GradientTransformation
) -> Callable[[int | jax.Array], TrainState]:
    """Returns the function (seed) -> TrainState that initialises a run."""
    model = make_model(config.model)

    def init(seed: int | jax.Array) -> TrainState:
        inputs = [jnp.zeros(x.shape, x.dtype) for x in example_inputs(config.model)]
        params = model.init(jax.random.key(seed), *inputs)["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            ema=None if config.optimizer.ema_decay is None else jax.tree.map(jnp.copy, params),
        )

    return init


def abstract_state(
    config: RunConfig, optimizer: optax.GradientTransformation, sharding: Sharding | None = None
) -> TrainState:
    """Returns the state's shapes, dtypes and shardings, at no cost."""
    shapes = jax.eval_shape(make_init(config, optimizer), config.seed)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )


def init_state(
    config: RunConfig, optimizer: optax.GradientTransformation, sharding: Sharding
) -> TrainState:
    """Returns the initial state, born with its sharding: no other copy of it ever exists."""
    init = jax.jit(make_init(config, optimizer), out_shardings=sharding)
    return init(np.uint32(config.seed))
