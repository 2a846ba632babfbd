"""What `integrate` accepts, apart from settings and times: fields, states, weights, axes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from odeformer.errors import check_name
from odeformer.ode.problem import (
    ERROR,
    MAX_STEPS_REACHED,
    SUMS,
    Solution,
    SolveSettings,
    State,
    VectorField,
)
from odeformer.ode.problem_checks import check_estimate


def as_state(y0: State, per_sample: bool, summed: bool = False) -> State:
    """Returns the state as arrays; raises ValueError where it is not one to integrate."""
    try:
        y0 = jax.tree.map(jnp.asarray, y0)
    except TypeError as error:
        raise ValueError(f"the state is a pytree of arrays; {y0!r} was given") from error

    leaves = jax.tree.leaves(y0)
    dtypes = {leaf.dtype for leaf in leaves}
    if dtypes not in ({jnp.dtype("float32")}, {jnp.dtype("float64")}):
        found = ", ".join(sorted(str(dtype) for dtype in dtypes)) or "a tree without arrays"
        raise ValueError(
            f"the state is float32 throughout, or float64 throughout; {found} was given: cast y0, "
            "and let the field compute in a lower precision inside its terms"
        )

    # The leading axis is mapped over, so every leaf needs one, and all the same.
    leading = {leaf.shape[:1] for leaf in leaves}
    if (per_sample or summed) and (len(leading) != 1 or () in leading):
        shapes = ", ".join(str(list(leaf.shape)) for leaf in leaves)
        name, takes = ("per_sample", "takes") if per_sample else ("sums", "take")
        raise ValueError(
            f"{name} {takes} a state whose arrays share a leading axis, the batch; {shapes} was "
            f"given: add the axis, or leave {name} out"
        )

    return y0


def as_weights(weights: State | None, y0: State) -> State | None:
    """Returns the weights, each broadcast to its part of the state.

    Raises:
      ValueError: weights of another structure, or of shapes that do not broadcast.
    """
    if weights is None:
        return None

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


def check_sums(**values: Any) -> None:
    """Raises ValueError for what is no tuple of names of sums along a solution."""
    for name, sums in values.items():
        if not isinstance(sums, tuple | list):
            raise ValueError(
                f"{name} is a tuple of names of {', '.join(SUMS)}; {sums!r} was given: put one "
                "name in a tuple, sums=('kinetic',)"
            )
        for each in sums:
            check_name("sum", each, SUMS)


def check_sums_of(settings: SolveSettings, sums: Any) -> None:
    """Raises ValueError for sums along a solution that there are not under these settings."""
    check_sums(sums=sums)
    if sums and settings.reversible is not None:
        raise ValueError(
            f"reversible={settings.reversible:g} has no sums along its flow, as two states run "
            f"side by side; sums={tuple(sums)} was given: leave either out"
        )

    if ERROR not in sums:
        return

    check_estimate(settings.solver, "there is no sum 'error' of it: leave that out")
    if settings.adjoint == "backsolve":
        raise ValueError(
            "adjoint 'backsolve' has no sum 'error': it differentiates the exact flow, and the "
            "error is the solver's; take adjoint 'checkpoint', 'recursive' or 'direct', or leave "
            "'error' out"
        )


def check_axes(params_axes: Any) -> None:
    """Raises ValueError where params_axes is not a tree of 0 and None."""
    # jax.tree counts no None among the leaves, so that only axes are left.
    if any(axis != 0 for axis in jax.tree.leaves(params_axes)):
        raise ValueError(
            f"params_axes is a tree of 0 (an axis of samples) and None (shared); {params_axes} was "
            "given: move the axis of samples to the front"
        )


def as_field(field: Any) -> VectorField:
    """Returns a VectorField, or a function as one of one term; raises ValueError for others."""
    if isinstance(field, VectorField):
        return field

    if not callable(field) or isinstance(field, type):
        raise ValueError(
            f"the field is a VectorField, or a function f(t, y, params) -> dy; {field!r} was "
            "given: give a field of several terms as VectorField(terms=(f, g))"
        )

    term: Any = field
    return VectorField((term,))


def check_success(solution: Solution, settings: SolveSettings) -> None:
    """Raises an error where a solve did not reach t1.

    Raises:
      RuntimeError: a result that is not success.
      ValueError: the solution is being traced.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(solution)):
        raise ValueError(
            "throw=True needs the result's value, and this solve is being traced (by jax.jit, "
            "jax.grad, jax.vmap or the like): leave throw out, and read `result` once the program "
            "has returned it"
        )

    result = np.asarray(solution.result)
    failed = int(np.count_nonzero(result))
    if not failed:
        return

    who = f"{failed} of {result.size} samples" if result.ndim else "the solve"
    if np.any(result == MAX_STEPS_REACHED):
        raise RuntimeError(
            f"{who} ran out of steps before t1: max_steps={settings.step_bound}, rejected ones "
            "included; give more max_steps, or a larger rtol or atol"
        )

    raise RuntimeError(
        f"{who} failed, as it does where t0, t1 or ts are not finite: check these times"
    )
