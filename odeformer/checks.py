"""What a solve accepts: names that exist, and steps or tolerances that describe one solve."""

import math

import jax

from odeformer import solvers
from odeformer.errors import check_whole, unknown

ADJOINTS = ("checkpoint", "store", "recursive", "direct", "backsolve")
_POLICY_MAKERS = ("save_", "offload_")  # jax.checkpoint_policies that take arguments first
POLICIES = tuple(
    name for name in dir(jax.checkpoint_policies) if not name.startswith(("_", *_POLICY_MAKERS))
)


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
    if adjoint not in ADJOINTS:
        raise unknown("adjoint", adjoint, ADJOINTS)
    if adjoint == "backsolve" and splitting:
        raise ValueError(
            f"adjoint 'backsolve' integrates the sum of the terms backwards, and {solver!r} splits "
            "them: take adjoint 'checkpoint' or 'recursive', or a Runge-Kutta solver"
        )
    if policy is None:
        return
    if policy not in POLICIES:
        raise unknown("checkpoint policy", policy, POLICIES)
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
        if value is not None and not value > 0:
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
