"""One solve: its vector field, its start and its settings; and the solution."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from odeformer.checks import COUNT, FLAG, Accepted, check_settings, one_of, plain, setting
from odeformer.ode import problem_checks as checks
from odeformer.ode import solvers

State = chex.ArrayTree
Params = Any  # any pytree
Term = Callable[..., State]
Times = np.ndarray | jax.Array

ADJOINTS = ("checkpoint", "store", "recursive", "direct", "backsolve")
# The adjoint of a reversible pair, which no other solve has.
REVERSIBLE = "reversible"

SUMS = KINETIC, ERROR = ("kinetic", "error")

# Some of jax.checkpoint_policies make a policy from arguments, which a name cannot give.
_POLICY_MAKERS = ("save_", "offload_")
POLICIES = tuple(
    name for name in dir(jax.checkpoint_policies) if not name.startswith(("_", *_POLICY_MAKERS))
)
DEFAULT_STEPS, DEFAULT_ATOL, DEFAULT_MAX_STEPS = 8, 1e-6, 64
_SOLVER = Accepted(lambda: f"one of {', '.join(solvers.NAMES)}", checks.check_solver)
_TOLERANCE = Accepted("greater than 0", checks.check_tolerance)
_COUPLING = Accepted("in (0, 1]", checks.check_coupling)

SUCCESS, MAX_STEPS_REACHED, FAILED = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class VectorField:
    """dy/dt = f_1(t, y, params) + f_2(t, y, params) + ...

    Attributes:
      terms: the f_j, each f_j(t, y, params) -> dy with dy of y's structure and shapes, of any
        floating dtype; called as f_j(t, y, params, key) where `integrate` is given a key.
        Parameters reach a term only through `params`: a term that closes over traced values leaks
        them.
      total: optional; the same function as the sum of the terms, computed at once. Solvers that
        split the field use the terms, all others the total.

    Raises:
      ValueError: no terms, or something other than a tuple of functions.
    """

    terms: tuple[Term, ...]
    total: Term | None = None

    def __post_init__(self):
        checks.check_terms(self.terms, self.total)

        # A frozen dataclass is hashed by its fields, and a list has no hash.
        object.__setattr__(self, "terms", tuple(self.terms))

    def __call__(self, t: jax.Array, y: State, params: Params, *key: jax.Array) -> State:
        """Evaluates the sum of the terms at time t (scalar) and state y."""
        if self.total is not None:
            return self.total(t, y, params, *key)

        first, *others = (term(t, y, params, *key) for term in self.terms)
        return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), first, *others)


def in_state_dtype(field: VectorField) -> VectorField:
    """Returns the field with each slope checked, and cast to the state's dtype.

    A field may compute in bfloat16; its slopes are added up in the state's dtype.
    """

    def cast(name: str, function: Term) -> Term:
        def term(t, y, params, *key):
            slope = function(t, y, params, *key)

            # Runs while the field is traced: the compiled program does not contain it.
            checks.check_slope(name, slope, y)
            return jax.tree.map(lambda dy, y: jnp.asarray(dy, y.dtype), slope, y)

        return term

    terms = tuple(cast(f"terms[{j}]", term) for j, term in enumerate(field.terms))
    return VectorField(terms, None if field.total is None else cast("total", field.total))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolveSettings:
    """How a field is solved, checked once.

    Attributes:
      solver: a name of `solvers.NAMES`, or an explicit solver of diffrax. With `rtol` it must have
        an error estimate.
      steps: number of equal fixed steps (default 8).
      rtol: relative tolerance of a step's local error; chooses adaptive steps.
      atol: absolute tolerance of adaptive steps (default 1e-6).
      max_steps: bound on adaptive steps, rejected ones included (default 64).
      per_sample: whether each sample takes its own adaptive steps; its answer is then the same in
        every batch, to float32 rounding.
      adjoint: 'checkpoint', 'store', 'recursive', 'direct' or 'backsolve'; with `reversible`
        'checkpoint', 'store' or 'reversible'; see `integrate`.
      policy: the name of one of `jax.checkpoint_policies`: what 'checkpoint' may keep under fixed
        steps.
      reversible: lambda in (0, 1]: the fixed steps are those of a reversible pair of states, which
        is another solver, of twice the evaluations; see `odeformer.ode.reversible`.

    Raises:
      ValueError: a value, a name or a combination that is not accepted.
    """

    solver: solvers.Solver = setting(_SOLVER, "rk4")
    steps: int | None = setting(COUNT, None)
    rtol: float | None = setting(_TOLERANCE, None)
    atol: float | None = setting(_TOLERANCE, None)
    max_steps: int | None = setting(COUNT, None)
    per_sample: bool = setting(FLAG, False)
    adjoint: str = setting(one_of((*ADJOINTS, REVERSIBLE)), "checkpoint")
    policy: str | None = setting(one_of(POLICIES, "checkpoint policy"), None)
    reversible: float | None = setting(_COUPLING, None)

    def __post_init__(self):
        # Numbers of NumPy and JAX are accepted where their values are known.
        for name in ("steps", "rtol", "atol", "max_steps", "per_sample", "reversible"):
            object.__setattr__(self, name, plain(getattr(self, name)))

        check_settings(self)
        checks.check_adjoint(self.solver, self.adjoint, self.policy)
        checks.check_pair(self.reversible, self.adjoint, self.rtol)
        if self.rtol is None:
            checks.check_fixed(atol=self.atol, max_steps=self.max_steps)
        else:
            checks.check_adaptive(self.solver, self.rtol, self.steps, self.adjoint, self.policy)

    @property
    def adaptive(self) -> bool:
        """Whether steps are chosen by tolerances."""
        return self.rtol is not None

    def evaluations(self, terms: int, error: bool = False) -> np.ndarray:
        """How often a fixed step evaluates each term of a field, int32 [terms].

        Args:
          terms: number of the field's terms.
          error: whether the error is estimated, too.
        """
        once = solvers.evaluations(self.solver, terms, error)

        # A pair takes a step of each of its two states.
        return once if self.reversible is None else 2 * once

    @property
    def tolerances(self) -> tuple[float, float]:
        """Relative and absolute tolerance of adaptive steps."""
        assert self.rtol is not None
        return float(self.rtol), DEFAULT_ATOL if self.atol is None else float(self.atol)

    @property
    def step_bound(self) -> int:
        """The most adaptive steps."""
        return DEFAULT_MAX_STEPS if self.max_steps is None else self.max_steps


class Span(NamedTuple):
    """The interval over which a field is solved, and the times at which states are returned.

    Attributes:
      t0: start, a scalar: float64 of NumPy, or a traced array.
      t1: end, a scalar as t0.
      ts: times at which states are returned, [n]; None if none are.
    """

    t0: Times
    t1: Times
    ts: Times | None


class Problem(NamedTuple):
    """The arguments of `integrate` that all ways of solving share, checked."""

    field: VectorField
    y0: State
    params: Params
    key: jax.Array | None
    settings: SolveSettings
    params_axes: Any = None
    weights: State | None = None
    prevent_cse: bool = True
    sums: tuple[str, ...] = ()

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments of a term after t and y."""
        return (self.params,) if self.key is None else (self.params, self.key)


class Solution(NamedTuple):
    """What `integrate` returns; a leading batch axis on all but the states with `per_sample`.

    Attributes:
      y1: the state at t1.
      ys: the states at the times ts, a leading axis of len(ts); None without ts.
      nfe: int32 [terms], evaluations of each term, rejected steps included.
      accepted: int32 [], accepted steps.
      rejected: int32 [], rejected steps.
      result: int32 [], 0 success, 1 ran out of max_steps, 2 any other failure.
      gap: |y - z| / |y| of a reversible pair at t1, float32 [] (float64 for a float64 state); None
        for any other solve. If it grows over depth, the pair is unstable.
      sums: the sums that were asked for, by name, each [B] of the state's dtype, where B is the
        state's leading axis; None if none were.
    """

    y1: State
    ys: State | None
    nfe: jax.Array
    accepted: jax.Array
    rejected: jax.Array
    result: jax.Array
    gap: jax.Array | None = None
    sums: dict[str, jax.Array] | None = None
