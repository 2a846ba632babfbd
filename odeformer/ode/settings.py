"""How a field is solved: its solver, steps or tolerances, and adjoint, checked once."""

import dataclasses
import math
import numbers
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from odeformer.errors import check_flag, check_name, check_positive_int
from odeformer.ode import solvers

ADJOINTS = ("checkpoint", "store", "recursive", "direct", "backsolve")

# Some of jax.checkpoint_policies are no policies but make one from arguments, which a name lacks.
_POLICY_MAKERS = ("save_", "offload_")
POLICIES = tuple(
    name for name in dir(jax.checkpoint_policies) if not name.startswith(("_", *_POLICY_MAKERS))
)
DEFAULT_STEPS, DEFAULT_ATOL, DEFAULT_MAX_STEPS = 8, 1e-6, 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolveSettings:
    """How a field is solved, checked once.

    Attributes:
      solver: a name of `solvers.NAMES`. With `rtol` one with an error estimate.
      steps: number of equal fixed steps (default 8).
      rtol: relative tolerance of a step's local error; chooses adaptive steps.
      atol: absolute tolerance of adaptive steps (default 1e-6).
      max_steps: bound on adaptive steps, rejected ones included (default 64).
      per_sample: whether each sample takes its own adaptive steps; its answer is then the same in
        every batch, to float32 rounding.
      adjoint: 'checkpoint', 'store', 'recursive', 'direct' or 'backsolve'; see `integrate`.
      policy: the name of one of `jax.checkpoint_policies`: what 'checkpoint' may keep under fixed
        steps.

    Raises:
      ValueError: a value, a name or a combination that is not accepted.
    """

    solver: str = "rk4"
    steps: int | None = None
    rtol: float | None = None
    atol: float | None = None
    max_steps: int | None = None
    per_sample: bool = False
    adjoint: str = "checkpoint"
    policy: str | None = None

    def __post_init__(self):
        # Numbers of NumPy and JAX are accepted where their values are known.
        for name in ("steps", "rtol", "atol", "max_steps", "per_sample"):
            object.__setattr__(self, name, plain(getattr(self, name)))

        _check_names(self)
        check_flag(per_sample=self.per_sample)
        check_positive_int(steps=self.steps, max_steps=self.max_steps)
        if self.rtol is None:
            _check_fixed(self)
        else:
            _check_adaptive(self)

    @property
    def adaptive(self) -> bool:
        """Whether steps are chosen by tolerances."""
        return self.rtol is not None

    @property
    def tolerances(self) -> tuple[float, float]:
        """Relative and absolute tolerance of adaptive steps."""
        assert self.rtol is not None
        return float(self.rtol), DEFAULT_ATOL if self.atol is None else float(self.atol)

    @property
    def step_bound(self) -> int:
        """The most adaptive steps."""
        return DEFAULT_MAX_STEPS if self.max_steps is None else self.max_steps


def plain(value: Any) -> Any:
    """Returns the Python number (bool, str) that a NumPy scalar or an array of no axes holds.

    Anything else is returned unchanged, also a value that is being traced.
    """
    # jax.Array includes tracers, which have no value yet; the checks refuse them in words.
    is_array = isinstance(value, (np.ndarray, np.generic, jax.Array))
    if not is_array or isinstance(value, Tracer) or np.ndim(value) > 0:
        return value

    return value.item()


def _check_names(settings: SolveSettings) -> None:
    solver, adjoint, policy = settings.solver, settings.adjoint, settings.policy
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


def _check_fixed(settings: SolveSettings) -> None:
    for name in ("atol", "max_steps"):
        value = getattr(settings, name)
        if value is not None:
            raise ValueError(
                f"{name}={value} was given without rtol: it belongs to adaptive steps, which "
                "rtol chooses; give rtol too, or leave it out"
            )


def _check_adaptive(settings: SolveSettings) -> None:
    rtol, solver, adjoint = settings.rtol, settings.solver, settings.adjoint
    _check_tolerances(rtol=rtol, atol=settings.atol)

    if not solvers.is_adaptive(solver):
        able = ", ".join(name for name in solvers.NAMES if solvers.is_adaptive(name))
        raise ValueError(
            f"solver {solver!r} has no error estimate, so it takes no tolerance (rtol={rtol}): "
            f"leave rtol out and give steps, or take one of {able}"
        )

    if settings.steps is not None:
        raise ValueError(
            f"steps={settings.steps} and rtol={rtol} were both given: fixed steps take steps, "
            "adaptive steps take rtol (and atol, max_steps); leave one out"
        )

    if adjoint == "store":
        raise ValueError(
            f"adjoint 'store' is for fixed steps; adaptive ones (rtol={rtol}) take checkpoint, "
            "recursive, direct (which keeps everything too) or backsolve"
        )

    if settings.policy is not None:
        raise ValueError(
            f"policy {settings.policy!r} is for fixed steps: under adaptive ones (rtol={rtol}) "
            "diffrax decides what 'checkpoint' keeps; leave the policy out"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _check_tolerances(**tolerances: Any) -> None:
    for name, value in tolerances.items():
        if value is None:
            continue

        if not _is_number(value):
            raise ValueError(
                f"{name} is one number greater than 0, known before tracing; {value!r} was given"
            )
        if not value > 0:
            raise ValueError(f"{name} is greater than 0; {value} was given")
        if value == math.inf:
            raise ValueError(f"{name} is finite; {value} was given")
