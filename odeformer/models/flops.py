"""Model FLOPs: the matrix products of a program, counted and calculated.

Only matrix products, 2 FLOPs per multiply-add: norms, softmax, activations and sums are left out,
as is usual (Chowdhery et al., 'PaLM', 2022, arXiv 2204.02311, appendix B).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from odeformer.models.checks import check_trips
from odeformer.models.registry import ModelConfig, example_inputs, example_sizes, make_model
from odeformer.ode.precision import programs_inside
from odeformer.transformer import terms
from odeformer.transformer.config import FieldConfig
from odeformer.transformer.layers import TimeEmbedding


def count(function: Callable[..., Any], *args: Any) -> int:
    """Returns the FLOPs of a function's matrix products, counted in its jaxpr.

    A scan's body counts as often as it runs, a conditional as its most expensive branch. Nothing is
    computed.

    Args:
      function: any function of JAX.
      *args: its arguments, arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: a while loop, whose trip count is unknown before it runs: count one evaluation
        of the field and multiply by the solve's nfe.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> count(jnp.dot, jax.ShapeDtypeStruct((2, 3), "float32"), jnp.ones((3, 5)))
      60
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    inputs: list[Any] = [variable.aval for variable in equation.invars]
    outputs: list[Any] = [variable.aval for variable in equation.outvars]

    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        summed = math.prod(inputs[0].shape[axis] for axis in contracted)
        return 2 * summed * math.prod(outputs[0].shape)

    if name == "conv_general_dilated":
        kernel = inputs[1].shape
        out_axis = params["dimension_numbers"].rhs_spec[0]
        return 2 * math.prod(outputs[0].shape) * math.prod(kernel) // kernel[out_axis]

    check_trips(name)
    inner = [_count(jaxpr) for jaxpr in programs_inside(params)]
    if name == "cond":
        return max(inner)

    return sum(inner) * (params["length"] if name == "scan" else 1)


def evaluation(config: FieldConfig, tokens: int) -> tuple[int, ...]:
    """Returns the FLOPs of one evaluation of each of the config's terms, for one sequence.

        attention = 8 N D^2 + 4 N^2 D,    mlp = 4 N D M,    conv = 6 N D^2,    damping = 0

    With H heads of size K, and keys and values of J heads, attention = 4 N D (H + J) K +
    4 N^2 H K; a gated MLP has 6 N D M. Centring adds no products. The embedding of the time, which
    each term that has a norm computes, is counted too.

    Args:
      config: of a model.
      tokens: N, tokens of the sequence.
    """
    return tuple(
        term.flops(config, tokens) + _time(config, term)
        for term in terms.select(config.terms).values()
    )


def evaluations(config: ModelConfig) -> np.ndarray:
    """Returns how often a forward pass of fixed steps evaluates each term, int [terms].

    Raises:
      ValueError: adaptive steps, whose number depends on the input.
    """
    depth = config.depth
    if depth.fixed_steps is None:
        raise ValueError(
            f"rtol={depth.rtol} gives each input steps of its own: take the nfe that the model "
            "reports, or fixed steps"
        )

    return depth.groups * depth.fixed_steps * depth.evaluations(len(config.terms))


def forward(config: ModelConfig, nfe: Sequence[float] | None = None) -> int:
    """Returns the model FLOPs of one example's forward pass, as calculated.

    An example is an image, or a block of tokens filled to its size. The result equals what `count`
    finds in the program for it, of the unfused sum.

    Args:
      config: of the model.
      nfe: evaluations of each term, or their means over examples; by default those of the config's
        fixed steps. For adaptive steps take those that the model reported.

    Raises:
      ValueError: adaptive steps and no nfe.
    """
    # All scores count, also those that a causal mask hides: the program computes them.
    costs = evaluation(config, example_sizes(config).tokens)
    depth = sum(n * cost for n, cost in zip(_counts(config, nfe), costs, strict=True))
    return int(_patches(config) + _head(config) + depth)


def training(config: ModelConfig, nfe: Sequence[float] | None = None) -> int:
    """Returns the model FLOPs of one example's forward and backward pass, as calculated.

        training = 3 forward - patches - time

    For each product of the forward pass the backward pass has two, one for the gradient of each
    factor. Patches and times are inputs without a gradient: the products that embed them have one.
    The result equals what `count` finds in the gradient under adjoint 'store'. It leaves out what
    another adjoint recomputes (see `recomputed`), and the optimiser, which has no products. Under
    adaptive steps every evaluation counts as differentiated, including those of rejected steps and
    of the choice of the first step.

    Args:
      config: of the model.
      nfe: as for `forward`.

    Raises:
      ValueError: adaptive steps and no nfe.
    """
    counts, each = _counts(config, nfe), terms.select(config.terms).values()
    times = sum(n * _time(config, term) for n, term in zip(counts, each, strict=True))
    return int(3 * forward(config, counts) - _patches(config) - times)


def _counts(config: ModelConfig, nfe: Sequence[float] | None) -> Sequence[float]:
    # Python's numbers: FLOPs exceed int32, the type of nfe.
    return evaluations(config).tolist() if nfe is None else nfe


def _patches(config: ModelConfig) -> int:
    """FLOPs that embed an image's patches."""
    sizes = example_sizes(config)
    return 2 * sizes.patches * sizes.patch_inputs * config.width


def _head(config: ModelConfig) -> int:
    """FLOPs of the logits."""
    sizes = example_sizes(config)
    return 2 * sizes.predictions * config.width * sizes.outputs


def _time(config: FieldConfig, term: terms.Term) -> int:
    """FLOPs that embed the depth-time of one evaluation of a term."""
    if config.time == "none" or term.norm is None:
        return 0

    return 2 * (2 * TimeEmbedding.frequencies) * config.width


def recomputed(config: ModelConfig) -> int:
    """Returns the FLOPs that the adjoint's recomputation adds to one example's training step.

    That is the gradient's FLOPs under the config's adjoint minus those under 'store', which keeps
    everything.

    Raises:
      ValueError: adaptive steps, or an adjoint whose loops have no known trip count.
    """
    # Shapes only: nothing is initialised or computed.
    inputs = example_inputs(config)
    variables = jax.eval_shape(make_model(config).init, jax.random.key(0), *inputs)

    def gradient(adjoint: str, policy: str | None) -> int:
        depth = dataclasses.replace(config.depth, adjoint=adjoint, policy=policy)
        model = make_model(dataclasses.replace(config, depth=depth))

        def loss(variables: Any, *inputs: jax.Array) -> jax.Array:
            return jnp.sum(jnp.asarray(model.apply(variables, *inputs)))

        return count(jax.grad(loss), variables, *inputs)

    return gradient(config.depth.adjoint, config.depth.policy) - gradient("store", None)
