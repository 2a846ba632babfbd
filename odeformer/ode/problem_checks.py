"""What a problem is made of: settings that fit one another, terms, slopes like the state."""

import math
import numbers
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from odeformer.ode import solvers

# The part of the state that a pair may lose to rounding on its way back.
LOST = 1e-3


def check_solver(**values: Any) -> None:
    """Raises ValueError for what is neither a solver's name nor an explicit solver."""
    for solver in values.values():
        solvers.get(solver)


def check_tolerance(**tolerances: Any) -> None:
    """Raises ValueError for a tolerance that is not one finite number greater than 0."""
    for name, value in tolerances.items():
        if not _is_number(value):
            raise ValueError(
                f"{name} is one number greater than 0, known before tracing; {value!r} was given"
            )
        if not value > 0:
            raise ValueError(f"{name} is greater than 0; {value} was given")
        if value == math.inf:
            raise ValueError(f"{name} is finite; {value} was given")


def check_adjoint(solver: solvers.Solver, adjoint: str, policy: str | None) -> None:
    """Raises ValueError for an adjoint that the solver, or the policy, does not go with."""
    if adjoint == "backsolve" and solvers.is_splitting(solver):
        raise ValueError(
            f"adjoint 'backsolve' integrates the sum of the terms backwards, and "
            f"{solvers.name_of(solver)!r} splits them: take adjoint 'checkpoint' or 'recursive', "
            "or a Runge-Kutta solver"
        )

    if policy is not None and adjoint != "checkpoint":
        raise ValueError(
            f"policy {policy!r} says what adjoint 'checkpoint' keeps, and adjoint {adjoint!r} was "
            "given: leave the policy out, or take 'checkpoint'"
        )


def check_coupling(**values: Any) -> None:
    """Raises ValueError for a lambda that is not a number in (0, 1]."""
    for name, value in values.items():
        if not _is_number(value) or not 0 < value <= 1:
            raise ValueError(f"{name} is a lambda in (0, 1], such as 0.999; {value!r} was given")


def check_pair(coupling: float | None, adjoint: str, rtol: float | None) -> None:
    """Raises ValueError for what a reversible pair, or its adjoint, does not go with."""
    if coupling is None:
        if adjoint == "reversible":
            raise ValueError(
                "adjoint 'reversible' runs a reversible pair backwards, and reversible=None was "
                "given: give a lambda, such as reversible=0.999, which is another solver; or take "
                "adjoint 'checkpoint'"
            )
        return

    if rtol is not None:
        raise ValueError(
            f"reversible={coupling} and rtol={rtol} were both given: a pair takes fixed steps, as "
            "adaptive ones would not be the same on the way back; leave one out"
        )

    if adjoint not in ("checkpoint", "store", "reversible"):
        raise ValueError(
            f"adjoint {adjoint!r} is diffrax's, which solves for one state, and reversible="
            f"{coupling} makes a pair: take adjoint 'reversible', 'checkpoint' or 'store', which "
            "give the same gradient, or leave reversible out"
        )


def warn_of_order(coupling: float | None, solver: solvers.Solver) -> None:
    """Warns of a reversible pair over a solver of first order."""
    if coupling is None or solvers.order(solver) > 1:
        return

    warnings.warn(
        f"reversible={coupling} over solver {solvers.name_of(solver)!r}, which is of first order: "
        "its local errors open a wide gap between the pair's states, which grows along every "
        "contracting direction; take 'midpoint', 'rk4' or another solver of a higher order",
        stacklevel=4,  # the line that makes a DepthConfig
    )


def check_recoverable(coupling: float | None, steps: int, dtype: Any) -> None:
    """Raises ValueError where so many steps back lose the state: lambda^-steps eps above 1e-3.

    Args:
      coupling: lambda; None passes.
      steps: of the whole depth.
      dtype: of the state.
    """
    eps = float(jnp.finfo(dtype).eps)
    if coupling is None or -steps * math.log(coupling) + math.log(eps) <= math.log(LOST):
        return

    # Rounded up, so that it is accepted.
    least = math.ceil(1e4 * (eps / LOST) ** (1 / steps)) / 1e4
    raise ValueError(
        f"reversible={coupling} over {steps} steps in {jnp.dtype(dtype).name} divides rounding "
        f"errors by lambda as often, and {coupling}^-{steps} eps is above {LOST:g}: the state "
        f"cannot be recovered; give reversible={least:g} or more, or take fewer steps"
    )


def check_fixed(**values: Any) -> None:
    """Raises ValueError for values that belong to adaptive steps, under fixed ones."""
    for name, value in values.items():
        if value is not None:
            raise ValueError(
                f"{name}={value} was given without rtol: it belongs to adaptive steps, which "
                "rtol chooses; give rtol too, or leave it out"
            )


def check_adaptive(
    solver: solvers.Solver, rtol: float, steps: int | None, adjoint: str, policy: str | None
) -> None:
    """Raises ValueError for settings that adaptive steps do not have."""
    check_estimate(solver, f"it takes no tolerance (rtol={rtol}): leave rtol out and give steps")

    if steps is not None:
        raise ValueError(
            f"steps={steps} and rtol={rtol} were both given: fixed steps take steps, "
            "adaptive steps take rtol (and atol, max_steps); leave one out"
        )

    if adjoint == "store":
        raise ValueError(
            f"adjoint 'store' is for fixed steps; adaptive ones (rtol={rtol}) take checkpoint, "
            "recursive, direct (which keeps everything too) or backsolve"
        )

    if policy is not None:
        raise ValueError(
            f"policy {policy!r} is for fixed steps: under adaptive ones (rtol={rtol}) "
            "diffrax decides what 'checkpoint' keeps; leave the policy out"
        )


def check_estimate(solver: solvers.Solver, so: str) -> None:
    """Raises ValueError for a solver without an error estimate; `so` says what follows from it."""
    if not solvers.is_adaptive(solver):
        able = ", ".join(name for name in solvers.NAMES if solvers.is_adaptive(name))
        raise ValueError(
            f"solver {solvers.name_of(solver)!r} has no error estimate, so {so}, or take one of "
            f"{able}"
        )


def check_terms(terms: Any, total: Any) -> None:
    """Raises ValueError where these are not the functions of a VectorField."""
    if not isinstance(terms, (tuple, list)):
        raise ValueError(
            "the terms of a VectorField are a tuple of functions (t, y, params) -> dy; "
            f"{terms!r} was given: put a single function in a tuple, terms=(f,)"
        )

    if not terms:
        raise ValueError("a VectorField has one term or more; terms=() was given")

    functions = {f"terms[{j}]": term for j, term in enumerate(terms)}
    if total is not None:
        functions["total"] = total
    for name, function in functions.items():
        if not callable(function):
            raise ValueError(
                f"{name} of a VectorField is a function (t, y, params) -> dy; {function!r} was "
                "given: give the function itself"
            )


def check_slope(name: str, slope: Any, y: Any) -> None:
    """Raises ValueError for a slope that is not like the state y.

    Args:
      name: of the term that returned it.
      slope: dy/dt.
      y: the state.
    """

    def fits(dy, y) -> bool:
        floating = jnp.issubdtype(jnp.result_type(dy), jnp.floating)
        return floating and jnp.shape(dy) == jnp.shape(y)

    same = jax.tree.structure(slope) == jax.tree.structure(y)
    if not same or not all(jax.tree.leaves(jax.tree.map(fits, slope, y))):
        found, accepted = (jax.tree.map(lambda x: str(jax.typeof(x)), tree) for tree in (slope, y))
        raise ValueError(
            f"{name} of the vector field returned {found} for the state {accepted}: a term returns "
            "dy/dt with the state's structure and shapes, in a floating dtype"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
