"""Which solvers are accepted: those whose steps and evaluations are known beforehand."""

from collections.abc import Iterable
from typing import Any

import diffrax


def check_explicit(solver: Any, splitting: type, names: Iterable[str]) -> None:
    """Raises ValueError for a solver that is neither explicit Runge-Kutta, Euler nor a splitting.

    Args:
      solver: an object of diffrax, or any other.
      splitting: the class of splittings.
      names: of the solvers that there are.
    """
    table = getattr(solver, "tableau", None)
    runge_kutta = isinstance(solver, diffrax.AbstractERK)
    if runge_kutta and isinstance(table, diffrax.ButcherTableau):
        return
    if isinstance(solver, diffrax.Euler | splitting):
        return

    if isinstance(solver, diffrax.AbstractImplicitSolver):
        reason = "is implicit: each of its stages is the solution of an equation"
    elif isinstance(solver, diffrax.LeapfrogMidpoint | diffrax.ReversibleHeun):
        reason = "keeps a state from step to step"
    else:
        reason = "is neither an explicit Runge-Kutta method with a Butcher tableau nor a splitting"

    raise ValueError(
        f"solver {type(solver).__name__} {reason}; accepted are Euler, a diffrax.AbstractERK with "
        "its `tableau` and an odeformer.solvers.Splitting: write it as one of these, or take "
        f"{', '.join(names)}"
    )
