"""The optimiser, as one visible chain."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from odeformer import lora, sharding
from train.config.patterns import factor_of, factors, matches_any
from train.config.run import OptimizerConfig
from train.config.tables import OPTIMIZERS, SCHEDULES

register = OPTIMIZERS.register
register_schedule = SCHEDULES.register

# The matrices that muon takes, by the last two names of their paths, and the axes of each, from
# its last one: those that it is summed over in a product, and those of the result. All other axes
# number matrices: the groups, and queries, keys and values.
_MATRICES = {
    ("q", "kernel"): MuonDimensionNumbers(reduction_axis=(-3,), output_axis=(-2, -1)),
    ("kv", "kernel"): MuonDimensionNumbers(reduction_axis=(-4,), output_axis=(-2, -1)),
    ("qkv", "kernel"): MuonDimensionNumbers(reduction_axis=(-4,), output_axis=(-2, -1)),
    ("out", "kernel"): MuonDimensionNumbers(reduction_axis=(-3, -2), output_axis=(-1,)),
    ("gate", "kernel"): MuonDimensionNumbers(reduction_axis=(-2,), output_axis=(-1,)),
    ("up", "kernel"): MuonDimensionNumbers(reduction_axis=(-2,), output_axis=(-1,)),
    ("down", "kernel"): MuonDimensionNumbers(reduction_axis=(-2,), output_axis=(-1,)),
}


# By the last name of a path: kernels, and their adapters.
_DECAYED = ("kernel", lora.A, lora.B)
# Parameters that follow the depth, by the first part of their names; all others precede it.
_AFTER_DEPTH = ("norm", "head", "distillation_head")


def make_schedule(config: OptimizerConfig, train_steps: int) -> optax.Schedule:
    """Returns the learning rate by step: linear warm-up, then what config.schedule names."""
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    after = SCHEDULES[config.schedule](config, train_steps - config.warmup_steps)
    return _promoting(optax.join_schedules([warmup, after], [config.warmup_steps]))


def make_optimizer(
    config: OptimizerConfig, train_steps: int, layers: int | None = None
) -> optax.GradientTransformation:
    """Returns clipping by the global norm, then the optimiser that config.name names.

    Frozen parameters have no part in the norm, no update, no decay and no state.

    Args:
      config: of the optimiser.
      layers: of the model's depth, over which config.layer_decay goes; where only the state's
        shapes matter it may be left out.
    """
    clip = optax.identity()
    if config.clip_norm is not None:
        clip = optax.clip_by_global_norm(config.clip_norm)

    chain = [clip, OPTIMIZERS[config.name](config, make_schedule(config, train_steps))]
    if config.rate_factors or config.layer_decay is not None:
        chain.append(optax.stateless(functools.partial(_scaled, config, layers)))
    optimizer = optax.chain(*chain)

    if config.freeze:
        parts: dict[Any, Any] = {"trained": optimizer, "frozen": optax.set_to_zero()}
        optimizer = optax.partition(parts, functools.partial(_labels, config))
    return optimizer._replace(update=_promoting(optimizer.update))


def _labels(config: OptimizerConfig, params: Any) -> Any:
    return jax.tree.map(lambda f: "frozen" if f else "trained", frozen_mask(config, params))


def frozen_mask(config: OptimizerConfig, params: Any) -> Any:
    """Returns a tree of bools: True for the parameters that are not trained."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: matches_any(parameter_name(path), config.freeze), params
    )


def parameter_name(path: tuple[Any, ...]) -> str:
    """Returns a parameter's name, such as 'head/kernel', for its path."""
    return "/".join(key.key for key in path)


def _scaled(config: OptimizerConfig, layers: int | None, updates: Any, params: Any) -> Any:
    """The updates, and the decay in them, times the factors of their learning rates."""
    by_pattern = factors(config.rate_factors)

    def scaled(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
        factor: Any = factor_of(parameter_name(path), by_pattern)
        if config.layer_decay is not None:
            assert layers is not None, "layer_decay goes over the layers of a depth"
            factor *= config.layer_decay ** _layers_above(path, update, layers)
        return update * jnp.asarray(factor, update.dtype)

    return jax.tree_util.tree_map_with_path(scaled, updates)


def _layers_above(path: tuple[Any, ...], leaf: jax.Array, layers: int) -> Any:
    """How many steps a parameter lies below the head; of a stacked one per group, [G, 1, ...].

    The last layer lies one step below it, the first one `layers`, and what precedes the depth one
    more. A group lies where its last layer does.

    Source: Bao et al., 'BEiT', 2021, arXiv 2106.08254.
    """
    names = parameter_name(path).split("/")
    if sharding.GROUPS in names:
        groups = leaf.shape[0]
        above = layers // groups * np.arange(groups)[::-1] + 1
        return above.reshape(-1, *[1] * (leaf.ndim - 1))

    return 0 if names[0] in _AFTER_DEPTH else layers + 1


def _promoting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Runs optax, which mixes ints and floats, even under JAX's strict dtype promotion."""

    @functools.wraps(function)
    def promoting(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return promoting


@SCHEDULES.define("cosine")
def _cosine(config: OptimizerConfig, steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(config.learning_rate, steps)


@SCHEDULES.define("linear")
def _linear(config: OptimizerConfig, steps: int) -> optax.Schedule:
    return optax.linear_schedule(config.learning_rate, 0.0, steps)


@SCHEDULES.define("constant")
def _constant(config: OptimizerConfig, steps: int) -> optax.Schedule:
    return optax.constant_schedule(config.learning_rate)


@SCHEDULES.define("wsd")
def _wsd(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Warm-up, stable, decay. Source: Hu et al., 'MiniCPM', 2024, arXiv 2404.06395."""
    decay = config.decay_steps or max(steps // 10, 1)
    stable = optax.constant_schedule(config.learning_rate)
    down = optax.linear_schedule(config.learning_rate, 0.0, decay)
    return optax.join_schedules([stable, down], [steps - decay])


@OPTIMIZERS.define("adamw")
def _adamw(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Source: Loshchilov, Hutter, 'Decoupled Weight Decay Regularization', arXiv 1711.05101."""
    return optax.adamw(
        rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=decay_mask
    )


@OPTIMIZERS.define("sgd")
def _sgd(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """m <- g + b1 m; the weights move by -rate (m + weight_decay * weights)."""
    return optax.chain(optax.trace(decay=config.b1), *_decay_and_scale(config, rate))


@OPTIMIZERS.define("lion")
def _lion(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Source: Chen et al., 'Symbolic Discovery of Optimization Algorithms', arXiv 2302.06675."""
    return optax.lion(
        rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=decay_mask
    )


@OPTIMIZERS.define("adafactor")
def _adafactor(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """The squared gradient's average of a matrix, from its averages over rows and over columns.

    Source: Shazeer, Stern, 'Adafactor: Adaptive Learning Rates with Sublinear Memory Cost', 2018,
    arXiv 1804.04235.
    """
    # Its clipping and its scaling by the size of a parameter would take all groups of a stacked
    # one together. Without them a learning rate of AdamW's serves.
    factored = optax.partition(
        {
            # Of heads of 32 and more, too.
            "matrix": optax.scale_by_factored_rms(min_dim_size_to_factor=32),
            # A stacked vector has two axes, but is no matrix.
            "vector": optax.scale_by_factored_rms(factored=False),
        },
        lambda params: jax.tree.map(lambda d: "matrix" if d else "vector", decay_mask(params)),
    )
    return optax.chain(factored, *_decay_and_scale(config, rate))


@OPTIMIZERS.define("muon")
def _muon(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon on the matrices of attention and MLP, each of its own; AdamW on the rest.

    Sources: Jordan et al., 'Muon', 2024, kellerjordan.github.io/posts/muon; Liu et al., 'Muon is
    Scalable for LLM Training', 2025, arXiv 2502.16982 (its scale, and decay).
    """
    muon = optax.chain(
        scale_by_muon(beta=config.b1, weight_dimension_numbers=_matrix_axes),
        optax.stateless(_like_adamw),
        *_decay_and_scale(config, rate),
    )
    return optax.partition({"muon": muon, "adamw": _adamw(config, rate)}, _muon_labels)


def _decay_and_scale(
    config: OptimizerConfig, rate: optax.Schedule
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Weight decay, which the learning rate scales as it does the update, and that scaling."""
    decay = optax.add_decayed_weights(config.weight_decay, mask=decay_mask)
    return decay, optax.scale_by_learning_rate(rate)


def _muon_labels(params: Any) -> Any:
    """The optimiser of each parameter."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "muon" if _names(path) in _MATRICES else "adamw", params
    )


def _matrix_axes(params: Any) -> Any:
    """The axes of each of muon's parameters."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _MATRICES[_names(path)], params)


def _like_adamw(updates: Any, params: Any) -> Any:
    """Orthogonal updates, whose entries are scaled to the size of AdamW's.

    0.2 sqrt(max(rows, columns)) U

    """

    def scaled(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
        axes: Any = _MATRICES[_names(path)]
        rows, columns = (math.prod(update.shape[axis] for axis in part) for part in axes)
        return 0.2 * math.sqrt(max(rows, columns)) * update

    return jax.tree_util.tree_map_with_path(scaled, updates)


def decay_mask(params: Any) -> Any:
    """Returns a tree of bools: True for what weight decay acts on.

    These are kernels, their low-rank adapters, and token embeddings.

    Biases, the norms' scales, positions and class tokens do not decay.
    """

    # By name, as the number of axes says nothing: the parameters of all groups are stacked, and a
    # stacked bias has two axes like a kernel.
    def is_decayed(path: tuple[Any, ...], _: Any) -> bool:
        module, name = _names(path)
        return name in _DECAYED or (module, name) == ("embedding", "embedding")

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def _names(path: tuple[Any, ...]) -> tuple[Any, Any]:
    """The last two names of a parameter's path."""
    *_, module, name = (None, *(key.key for key in path))
    return module, name


def update_ema(decay: float, step: jax.Array, ema: Any, params: Any) -> Any:
    """Returns the exponential moving average of the weights after step `step` (from 0).

        ema <- d * ema + (1 - d) * params,   d = min(decay, (1 + step) / (10 + step))

    Source: `num_updates` of TensorFlow's ExponentialMovingAverage.
    """
    # With the constant decay alone the average would remember the initial weights for thousands of
    # steps: 0.9999^10,000 is still 0.37.
    weight = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(params, ema, weight)
