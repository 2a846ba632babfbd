"""What a run changes from step to step."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from odeformer import example_inputs, make_model
from train.config.run import RunConfig
from train.devices.mesh import parameter_shardings, replicated
from train.guard import Guard, init_guard


@flax.struct.dataclass
class TrainState:
    """The state of a run; random keys are functions of the seed and the step, and not in it.

    A batch that is skipped changes nothing of it but the guard's counts.
    """

    step: jax.Array  # int32: batches learnt from
    params: Any
    opt_state: Any
    ema: Any | None  # the weights' moving average, where the run keeps one
    guard: Guard

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
            guard=init_guard(),
        )

    return init


def abstract_state(
    config: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Returns the state's shapes, dtypes and shardings, at no cost.

    Args:
      config: of the run.
      optimizer: its optimiser, whose moments lie as the parameters do.
      mesh: the devices.
    """
    shapes = jax.eval_shape(make_init(config, optimizer), config.seed)
    params = parameter_shardings(mesh, config.model, shapes.params)
    whole = replicated(mesh)
    opt_state: Any = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        shapes.opt_state,
        params,
        transform_non_params=lambda _: whole,
    )
    ema = None if shapes.ema is None else params
    shardings = shapes.replace(
        step=whole,
        params=params,
        opt_state=opt_state,
        ema=ema,
        guard=jax.tree.map(lambda _: whole, shapes.guard),
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def state_shardings(
    config: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Returns how the state lies on a mesh: the shardings that `abstract_state` has."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, optimizer, mesh))


def init_state(
    config: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Returns the initial state, born where it lies: no whole copy of it is on any device.

    Args:
      config: of the run.
      optimizer: its optimiser.
      mesh: the devices.
    """
    return jit_init(config, optimizer, mesh)(np.uint32(config.seed))


def jit_init(
    config: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[..., TrainState]:
    """Returns the jitted function (seed) -> TrainState that makes the state where it lies."""
    return jax.jit(
        make_init(config, optimizer), out_shardings=state_shardings(config, optimizer, mesh)
    )
