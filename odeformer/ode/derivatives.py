"""Refuses derivatives that an adjoint does not have; JAX's own errors do not say what to do."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from odeformer.ode.problem import Problem, Times

_NO_GRADIENT_OF_ENDS = (
    "adjoint 'backsolve' has no gradient with respect to t0 and t1, and one was asked for: take "
    "adjoint 'checkpoint', 'recursive' or 'direct', or stop their gradients "
    "(jax.lax.stop_gradient)"
)


def refuse_derivatives(
    problem: Problem, t0: Times, t1: Times, adjoint: str
) -> tuple[Problem, Times, Times]:
    """Returns the problem and its ends, whose derivatives raise where the adjoint lacks them.

    Args:
      problem: its state and parameters are marked.
      t0: start.
      t1: end.
      adjoint: 'recursive', 'direct' or 'backsolve': what the problem's adjoint means here.
    """
    if adjoint == "direct":
        return problem, t0, t1

    meant = "" if adjoint == problem.settings.adjoint else f" (under adaptive steps {adjoint!r})"
    message = (
        f"adjoint {problem.settings.adjoint!r}{meant} has first derivatives in reverse mode alone "
        "(jax.grad, jax.vjp), and forward mode or second derivatives were asked for (jax.jvp, "
        "jax.jacfwd, jax.hessian, Hessian-vector products): take adjoint 'direct', or fixed steps "
        "under 'checkpoint' or 'store'"
    )

    backsolve = adjoint == "backsolve"
    if backsolve:
        t0, t1 = nondifferentiable((t0, t1), _NO_GRADIENT_OF_ENDS)
    tree = (problem.y0, problem.params, t0, t1)
    y0, params, t0, t1 = reverse_mode_only(tree, message, once=backsolve)
    return problem._replace(y0=y0, params=params), t0, t1


def reverse_mode_only(tree: Any, message: str, once: bool = False) -> Any:
    """Returns the tree, which then has only first derivatives in reverse mode.

    Args:
      tree: any pytree; leaves other than floating arrays are unchanged.
      message: of the ValueError that all other derivatives raise.
      once: whether a gradient is refused as soon as it is differentiated, rather than where its
        derivative is used: diffrax itself raises that early under 'backsolve'.

    Returns:
      The same tree.
    """
    return _map_floating(lambda leaf: _differentiable(leaf, message, once), tree)


def nondifferentiable(tree: Any, message: str) -> Any:
    """Returns the tree, whose derivatives raise a ValueError with that message."""
    return _map_floating(lambda leaf: _nondifferentiable(leaf, message), tree)


def _map_floating(function: Any, tree: Any) -> Any:
    def leaf(x):
        floating = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.inexact)
        return function(x) if floating else x

    return jax.tree.map(leaf, tree)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _nondifferentiable(x, message):
    return x


@_nondifferentiable.defjvp
def _(message, primals, tangents):
    raise ValueError(message)


# Forward mode evaluates the mark that stands on the tangents, and raises; reverse mode transposes
# it, which is allowed once.
@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _differentiable(x, message, once):
    return x


@_differentiable.defjvp
def _(message, once, primals, tangents):
    (x,) = primals
    x = _nondifferentiable(x, message) if once else _differentiable(x, message, once)
    return x, _tangent_p.bind(tangents[0], message=message)


# A gradient in turn: its own derivatives, the second ones, raise wherever they are used.
@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _cotangent(x, message):
    return x


@_cotangent.defjvp
def _(message, primals, tangents):
    tangent = _second_p.bind(tangents[0], message=message)
    return _cotangent(primals[0], message), tangent


def _refuse(*args: Any, message: str, **kwargs: Any) -> Any:
    raise ValueError(message)


def _linear_mark(name: str) -> Primitive:
    """An identity on tangents that can be transposed, and raises when it is evaluated."""
    primitive = Primitive(name)

    # Eagerly, or while a program is being lowered.
    primitive.def_impl(_refuse)
    primitive.def_abstract_eval(lambda x, *, message: x)
    mlir.register_lowering(primitive, lambda ctx, *args, message: _refuse(message=message))

    # Forward mode over forward mode.
    ad.primitive_jvps[primitive] = lambda primals, tangents, *, message: _refuse(message=message)
    batching.primitive_batchers[primitive] = lambda args, axes, *, message: (
        primitive.bind(args[0], message=message),
        axes[0],
    )
    return primitive


def _transpose_first(cotangent: Any, x: Any, *, message: str) -> list[Any]:
    zero = isinstance(cotangent, ad.Zero)
    return [cotangent if zero else _cotangent(cotangent, message)]


def _transpose_second(cotangent: Any, x: Any, *, message: str) -> list[Any]:
    return [cotangent] if isinstance(cotangent, ad.Zero) else _refuse(message=message)


# On the tangents of first derivatives, and on those of a gradient.
_tangent_p = _linear_mark("reverse_mode_only")
_second_p = _linear_mark("first_derivatives_only")
ad.primitive_transposes[_tangent_p] = _transpose_first
ad.primitive_transposes[_second_p] = _transpose_second
