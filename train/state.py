"""What changes from step to step of a run: weights, moments, and what the guard has seen."""

import itertools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from odeformer import example_inputs, make_model
from train.adapters import init_trained
from train.config.refining import at_step
from train.config.run import RunConfig
from train.devices.mesh import parameter_shardings, replicated
from train.optimizer import make_optimizer

# Number of batches that a new one is compared with.
WINDOW = 128


@flax.struct.dataclass
class Guard:
    """Statistics of the batches so far; a part of a run's state."""

    recent: jax.Array  # float32 [WINDOW, 2]: loss, gradient norm of the newest accepted batches
    consecutive: jax.Array  # int32: skipped batches since the newest accepted one
    skipped: jax.Array  # int32: skipped batches in all


@flax.struct.dataclass
class TrainState:
    """The state of a run.

    Random keys are functions of the seed and the step, and not part of it. A skipped batch changes
    nothing but the guard's counts.
    """

    step: jax.Array  # int32: batches learnt from
    params: Any  # that are trained: with config.lora.rank the adapters, and a classifier's head
    opt_state: Any
    ema: Any | None  # the weights' moving average; None if the run keeps none
    guard: Guard

    @property
    def eval_params(self) -> Any:
        """The trained weights to evaluate with: the average if there is one."""
        return self.params if self.ema is None else self.ema


def init_guard() -> Guard:
    """Returns the statistics before the first batch."""
    return Guard(
        recent=jnp.zeros((WINDOW, 2), jnp.float32),
        consecutive=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
    )


def make_init(
    config: RunConfig, optimizer: optax.GradientTransformation
) -> Callable[..., TrainState]:
    """Returns the function (seed, head=None) -> TrainState that initialises a run.

    The head is that of adapted weights, where the run's classes are theirs.
    """
    model = make_model(config.model)

    def init(seed: int | jax.Array, head: Any = None) -> TrainState:
        inputs = [jnp.zeros(x.shape, x.dtype) for x in example_inputs(config.model)]
        params = model.init(jax.random.key(seed), *inputs)["params"]
        if config.lora.rank is not None:
            params = init_trained(config, seed, params, head)

        return make_state(config, optimizer, params)

    return init


def make_state(
    config: RunConfig, optimizer: optax.GradientTransformation, params: Any
) -> TrainState:
    """Returns the state of a run that begins with these weights."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        # A copy: the step donates its state, and no buffer can be donated twice.
        ema=None if config.optimizer.ema_decay is None else jax.tree.map(jnp.copy, params),
        guard=init_guard(),
    )


def abstract_state(
    config: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Returns the state's shapes, dtypes and shardings; no memory is allocated."""
    shapes = jax.eval_shape(make_init(config, optimizer), config.seed)
    params = parameter_shardings(mesh, config.model, shapes.params)
    everywhere = replicated(mesh)

    opt_state = optimizer_shardings(shapes.opt_state, shapes.params, params)
    shardings = shapes.replace(
        step=everywhere,
        params=params,
        opt_state=opt_state,
        ema=None if shapes.ema is None else params,
        guard=jax.tree.map(lambda _: everywhere, shapes.guard),
    )

    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def optimizer_shardings(opt_state: Any, params: Any, shardings: Any) -> Any:
    """Returns the shardings of an optimiser's state, a tree of its structure.

    What lies at the end of a parameter's path in the state belongs to it. A moment of its shape is
    split as it is, and one that lacks some of its axes (a factored one) along those that it has.
    All else is replicated.

    Args:
      opt_state: the state, or its shapes.
      params: the parameters, or their shapes.
      shardings: those of the parameters.
    """
    flat = jax.tree_util.tree_leaves_with_path(params)
    owners = {
        tuple(key.key for key in path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(flat, jax.tree.leaves(shardings), strict=True)
    }
    everywhere = replicated(jax.tree.leaves(shardings)[0].mesh)

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = tuple(getattr(key, "key", None) for key in path)

        # The longest end first: a path may be the end of another one.
        for start in range(len(names)):
            if names[start:] in owners:
                return _without_axes(*owners[names[start:]], leaf.shape) or everywhere

        return everywhere

    return jax.tree_util.tree_map_with_path(sharding, opt_state)


def _without_axes(
    shape: tuple[int, ...], sharding: NamedSharding, left: tuple[int, ...]
) -> NamedSharding | None:
    """The sharding of an array with some of another one's axes; None if it has others, too."""
    if left == shape:
        return sharding

    sizes, spec = list(left), []
    for size, axes in itertools.zip_longest(shape, sharding.spec):
        if sizes and size == sizes[0]:
            sizes.pop(0)
            spec.append(axes)

    return None if sizes else NamedSharding(sharding.mesh, PartitionSpec(*spec))


def expected_state(config: RunConfig, mesh: Mesh, step: int = 0) -> TrainState:
    """Returns the abstract state of a run as its config alone says: what its checkpoints hold.

    Args:
      step: of the checkpoint; the weights over depth may have been refined until then.
    """
    config = at_step(config, step)
    layers = config.model.depth.layers
    optimizer = make_optimizer(config.optimizer, config.train_steps, layers)
    return abstract_state(config, optimizer, mesh)


def state_shardings(
    config: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Returns the shardings of the state, in its structure."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, optimizer, mesh))


def init_state(
    config: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Returns the initial state, born sharded: no device ever holds all of it."""
    return jit_init(config, optimizer, mesh)(np.uint32(config.seed))


def jit_init(
    config: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[..., TrainState]:
    """Returns the jitted function of `make_init`, whose outputs are sharded."""
    return jax.jit(
        make_init(config, optimizer), out_shardings=state_shardings(config, optimizer, mesh)
    )


def judge(
    guard: Guard, steps: jax.Array, loss: jax.Array, grad_norm: jax.Array, sigmas: float | None
) -> tuple[jax.Array, Guard]:
    """Returns whether a batch is accepted, and the statistics after it.

    It is if its loss and its gradient's norm are finite and, once WINDOW batches were accepted,

        value <= mean + sigmas * standard deviation

    of the WINDOW newest ones, for both.

    Args:
      guard: the statistics so far.
      steps: int32, number of batches accepted so far.
      loss: of the batch, float32 (nats).
      grad_norm: of the batch's gradient, float32.
      sigmas: the number of standard deviations; None: any finite value is accepted.
    """
    values = jnp.stack([loss, grad_norm])
    accepted = jnp.isfinite(values).all()

    if sigmas is not None:
        bound = guard.recent.mean(axis=0) + sigmas * guard.recent.std(axis=0)

        # Until the window is full it holds zeros.
        accepted &= (steps < WINDOW) | (values <= bound).all()

    # A skipped batch must leave no trace in the window: a single NaN would reject all that follow.
    recent = guard.recent.at[steps % WINDOW].set(values)
    return accepted, Guard(
        recent=jnp.where(accepted, recent, guard.recent),
        consecutive=jnp.where(accepted, 0, guard.consecutive + 1),
        skipped=guard.skipped + (~accepted).astype(jnp.int32),
    )
