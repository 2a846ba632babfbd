"""What a solve accepts: names that exist, and steps or tolerances that describe one solve."""

import jax

from odeformer import solvers
from odeformer.errors import check_whole, unknown

ADJOINTS = ("checkpoint", "store", "recursive", "direct", "backsolve")
_POLICY_MAKERS = ("save_", "offload_")  # jax.checkpoint_policies that take arguments first
POLICIES = tuple(
    name for name in dir(jax.checkpoint_policies) if not name.startswith(("_", *_POLICY_MAKERS))
)


def check_names(solver: str, adjoint: str, policy: str | None) -> None:
    """Raises ValueError where a solver, an adjoint, a policy or their combination is not known."""
    splitting = solvers.is_splitting(solver)
    if adjoint not in ADJOINTS:
        raise unknown("adjoint", adjoint, ADJOINTS)
    if adjoint == "backsolve" and splitting:
        raise ValueError(
            f"adjoint 'backsolve' integrates the sum of the terms backwards, and {solver!r} splits "
            "them: take adjoint 'checkpoint' or 'recursive', or a Runge-Kutta solver"
        )
    if policy is not None and policy not in POLICIES:
        raise unknown("checkpoint policy", policy, POLICIES)


def check_steps(
    solver: str,
    steps: int | None,
    adjoint: str,
    rtol: float | None,
    atol: float | None,
    max_steps: int | None,
) -> None:
    """Raises ValueError where the steps and tolerances do not describe one solve."""
    check_whole(steps=steps, max_steps=max_steps)
    if rtol is None:
        for name, value in (("atol", atol), ("max_steps", max_steps)):
            if value is not None:
                raise ValueError(
                    f"{name}={value} was given without rtol: it belongs to adaptive steps, which "
                    "rtol chooses; give rtol too, or leave it out"
                )
        return
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
            "adjoint 'store' is for fixed steps; adaptive steps take checkpoint, recursive, direct "
            "(which keeps everything too) or backsolve"
        )
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} is greater than 0; {value} was given")
