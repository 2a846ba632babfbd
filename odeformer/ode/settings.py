"""What a solve accepts: names that exist, and steps or tolerances that describe one solve."""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from odeformer.errors import check_name, check_whole
from odeformer.ode import solvers
from odeformer.ode.field import MAX_STEPS_REACHED, Solution, State, VectorField

ADJOINTS = ("checkpoint", "store", "recursive", "direct", "backsolve")
_POLICY_MAKERS = ("save_", "offload_")  # jax.checkpoint_policies that take arguments first
POLICIES = tuple(
    name for name in dir(jax.checkpoint_policies) if not name.startswith(("_", *_POLICY_MAKERS))
)


def plain(value: Any) -> Any:
    """Returns the Python number (bool, str) that a NumPy scalar or an array of no axes holds.

    Anything else, such as what is being traced, is returned as it is.
    """
    is_array = isinstance(value, (np.ndarray, np.generic, jax.Array))
    if not is_array or isinstance(value, Tracer) or np.ndim(value) > 0:
        return value
    return value.item()


def check_flags(**flags: Any) -> None:
    """Raises ValueError for a flag that is neither True nor False."""
    for name, value in flags.items():
        if not isinstance(plain(value), bool):
            raise ValueError(f"{name} is True or False; {value!r} was given")


def as_state(y0: State, per_sample: bool) -> State:
    """Returns the state as arrays; raises ValueError where it is not one to integrate."""
    try:
        y0 = jax.tree.map(jnp.asarray, y0)
    except TypeError as error:
        raise ValueError(f"the state is a pytree of arrays; {y0!r} was given") from error
    _check_state(y0, per_sample)
    return y0


def _check_state(y0: State, per_sample: bool) -> None:
    leaves = jax.tree.leaves(y0)
    dtypes = {leaf.dtype for leaf in leaves}
    if dtypes not in ({jnp.dtype("float32")}, {jnp.dtype("float64")}):
        given = ", ".join(sorted(str(dtype) for dtype in dtypes)) or "a tree without arrays"
        raise ValueError(
            f"the state is float32 throughout, or float64 throughout; {given} was given: cast y0, "
            "and let the field compute in a lower precision inside its terms"
        )
    leading = {leaf.shape[:1] for leaf in leaves}
    if per_sample and (len(leading) != 1 or () in leading):
        shapes = ", ".join(str(list(leaf.shape)) for leaf in leaves)
        raise ValueError(
            f"per_sample takes a state whose arrays share a leading axis, the batch; {shapes} was "
            "given: add the axis, or leave per_sample out"
        )


def check_axes(params_axes: Any) -> None:
    """Raises ValueError where params_axes is no tree of 0 and None."""
    if any(axis != 0 for axis in jax.tree.leaves(params_axes)):
        raise ValueError(
            f"params_axes is a tree of 0 (an axis of samples) and None (shared); {params_axes} was "
            "given: move the axis of samples to the front"
        )


def like_state(weights: State, y0: State) -> State:
    """Returns the weights, each broadcast to its part of the state."""
    if jax.tree.structure(weights) != jax.tree.structure(y0):
        raise ValueError(
            f"weights are of the state's structure {jax.tree.structure(y0)}; "
            f"{jax.tree.structure(weights)} was given"
        )
    try:
        return jax.tree.map(lambda w, y: jnp.broadcast_to(w, y.shape), weights, y0)
    except ValueError as error:
        shapes = [[list(jnp.shape(x)) for x in jax.tree.leaves(tree)] for tree in (weights, y0)]
        raise ValueError(
            f"weights of shapes {shapes[0]} do not broadcast to the state's {shapes[1]}"
        ) from error


def check_field(field: VectorField, solver: str) -> None:
    """Raises ValueError for what is no VectorField, or has too few terms for the solver."""
    if not isinstance(field, VectorField):
        raise ValueError(
            f"the field is a VectorField; {field!r} was given: give a function f(t, y, params) -> "
            "dy as VectorField(terms=(f,))"
        )
    if solvers.is_splitting(solver) and len(field.terms) < 2:
        raise ValueError(
            f"solver {solver!r} splits a field of two terms or more; this field has "
            f"{len(field.terms)}: give its terms one by one, or take 'euler'"
        )


def check_success(solution: Solution, max_steps: int | None) -> None:
    """Raises RuntimeError where a solve did not arrive at t1.

    Args:
      solution: of `integrate`.
      max_steps: the bound on its adaptive steps; None under fixed ones.

    Raises:
      RuntimeError: a result that is not success.
      ValueError: the solution is being traced.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(solution)):
        raise ValueError(
            "throw=True looks at the result's value, and this solve is being traced (by jax.jit, "
            "jax.grad, jax.vmap or the like): leave throw out, and look at `result` where the "
            "program has returned it"
        )
    result = np.asarray(solution.result)
    failed = int(np.count_nonzero(result))
    if not failed:
        return
    who = f"{failed} of {result.size} samples" if result.ndim else "the solve"
    if np.any(result == MAX_STEPS_REACHED):
        raise RuntimeError(
            f"{who} ran out of steps before t1: max_steps={max_steps}, rejected ones included; "
            "give more max_steps, or a larger rtol or atol"
        )
    raise RuntimeError(f"{who} failed, as it does where t0, t1 or ts are not finite: look at these")


def check_solve(
    solver: str,
    steps: int | None,
    adjoint: str,
    rtol: float | None,
    atol: float | None,
    max_steps: int | None,
    policy: str | None,
) -> None:
    """Raises ValueError where a name is not known, or the values do not describe one solve.

    Args:
      solver: of `solvers.NAMES`.
      steps: number of fixed steps, None under adaptive ones or for a default.
      adjoint: of `ADJOINTS`.
      rtol: relative tolerance, None under fixed steps.
      atol: absolute tolerance, None under fixed steps or for a default.
      max_steps: bound on adaptive steps, likewise.
      policy: of `POLICIES`, or None.
    """
    _check_names(solver, adjoint, policy)
    check_whole(steps=steps, max_steps=max_steps)
    if rtol is not None:
        _check_adaptive(solver, steps, adjoint, policy, rtol, atol)
        return
    for name, value in (("atol", atol), ("max_steps", max_steps)):
        if value is not None:
            raise ValueError(
                f"{name}={value} was given without rtol: it belongs to adaptive steps, which "
                "rtol chooses; give rtol too, or leave it out"
            )


def _check_names(solver: str, adjoint: str, policy: str | None) -> None:
    splitting = solvers.is_splitting(solver)
    check_name("adjoint", adjoint, ADJOINTS)
    if adjoint == "backsolve" and splitting:
        raise ValueError(
            f"adjoint 'backsolve' integrates the sum of the terms backwards, and {solver!r} splits "
            "them: take adjoint 'checkpoint' or 'recursive', or a Runge-Kutta solver"
        )
    if policy is None:
        return
    check_name("checkpoint policy", policy, POLICIES)
    if adjoint != "checkpoint":
        raise ValueError(
            f"policy {policy!r} says what adjoint 'checkpoint' keeps, and adjoint {adjoint!r} was "
            "given: leave the policy out, or take 'checkpoint'"
        )


def _check_adaptive(
    solver: str,
    steps: int | None,
    adjoint: str,
    policy: str | None,
    rtol: float,
    atol: float | None,
) -> None:
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is None:
            continue
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            raise ValueError(
                f"{name} is one number greater than 0, known before tracing; {value!r} was given"
            )
        if not value > 0:
            raise ValueError(f"{name} is greater than 0; {value} was given")
        if value == math.inf:
            raise ValueError(f"{name} is finite; {value} was given")
    if not solvers.is_adaptive(solver):
        able = ", ".join(name for name in solvers.NAMES if solvers.is_adaptive(name))
        raise ValueError(
            f"solver {solver!r} has no error estimate, so it takes no tolerance (rtol={rtol}): "
            f"leave rtol out and give steps, or take one of {able}"
        )
    if steps is not None:
        raise ValueError(
            f"steps={steps} and rtol={rtol} were both given: fixed steps take steps, adaptive "
            "steps take rtol (and atol, max_steps); leave one out"
        )
    if adjoint == "store":
        raise ValueError(
            f"adjoint 'store' is for fixed steps; adaptive ones (rtol={rtol}) take checkpoint, "
            "recursive, direct (which keeps everything too) or backsolve"
        )
    if policy is not None:
        raise ValueError(
            f"policy {policy!r} is for fixed steps: under adaptive ones (rtol={rtol}) diffrax "
            "decides what 'checkpoint' keeps; leave the policy out"
        )
