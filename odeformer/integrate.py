"""Integrates a vector field over depth: fixed or adaptive steps, any solver, any adjoint."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from odeformer import checks, solvers
from odeformer.grid import grid_indices, make_grid

State = chex.ArrayTree
Params = Any  # any pytree
Term = Callable[..., State]

SUCCESS, MAX_STEPS_REACHED, FAILED = 0, 1, 2
DEFAULT_STEPS, DEFAULT_ATOL, DEFAULT_MAX_STEPS = 8, 1e-6, 64


@dataclasses.dataclass(frozen=True)
class VectorField:
    """dy/dt = f_1(t, y, params) + f_2(t, y, params) + ...

    Attributes:
      terms: the f_j, each f_j(t, y, params) -> dy with dy of y's structure and shapes; called as
        f_j(t, y, params, key) where `integrate` is given a key. Parameters reach a term through
        `params` alone: a term that closes over traced values leaks them.
      total: optional; the same function as the sum of the terms, computed at once. Solvers that
        split the field use the terms, all others the total.
    """

    terms: tuple[Term, ...]
    total: Term | None = None

    def __post_init__(self):
        if not self.terms:
            raise ValueError("a VectorField has one term or more; terms=() was given")

    def __call__(self, t: jax.Array, y: State, params: Params, *key: jax.Array) -> State:
        """Evaluates the sum of the terms at time t (scalar) and state y."""
        if self.total is not None:
            return self.total(t, y, params, *key)
        return _sum([term(t, y, params, *key) for term in self.terms])


class Solution(NamedTuple):
    """What `integrate` returns; a leading batch axis on all but the states with `per_sample`."""

    y1: State  # the state at t1
    ys: State | None  # the states at the times ts, a leading axis of len(ts); None if not asked
    nfe: jax.Array  # int32 [terms]: evaluations of each term, rejected steps included
    accepted: jax.Array  # int32 []: accepted steps
    rejected: jax.Array  # int32 []: rejected steps
    result: jax.Array  # int32 []: 0 success, 1 ran out of max_steps, 2 any other failure


def integrate(
    field: VectorField,
    y0: State,
    params: Params,
    t0: float = 0.0,
    t1: float = 1.0,
    solver: str = "rk4",
    steps: int | None = None,
    adjoint: str = "checkpoint",
    ts: Any = None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    per_sample: bool = False,
    key: jax.Array | None = None,
    policy: str | None = None,
) -> Solution:
    """Solves dy/dt = f(t, y, params) from t0 to t1: fixed steps, or adaptive ones given `rtol`.

    Args:
      field: the vector field.
      y0: the state at t0, a pytree of float32 arrays (float64: then time too is float64).
      params: what the field's terms are given as params; gradients flow to it.
      t0: start time.
      t1: end time.
      solver: a name of `solvers.NAMES`. With `rtol` one with an error estimate.
      steps: number of equal fixed steps (default 8).
      adjoint: how gradients are computed.
        'checkpoint': fixed steps recompute each step and its stages, and store one state a step;
          adaptive steps mean 'recursive' by it, and 'direct' inside shard_map.
        'store': fixed steps only; everything is kept, nothing recomputed.
        'recursive': diffrax's binomial checkpointing: memory grows with the root of the steps.
        'direct': diffrax's plain differentiation through the solve; forward mode works too.
        'backsolve': the continuous adjoint equation, solved backwards, in memory that does not
          grow with the steps. Its gradient is that of the exact flow, NOT of the computed one:
          wrong at coarse steps (at 12 Euler steps of a 12-layer field a norm of 577 was seen where
          704 is true) and right only as the steps get fine. Not for the splittings.
      ts: times at which the states are returned too, ascending within [t0, t1]. Under fixed steps
        they lie on the grid of the steps; under adaptive steps they are interpolated.
      rtol: relative tolerance of a step's local error; chooses adaptive steps.
      atol: absolute tolerance (default 1e-6).
      max_steps: bound on the adaptive steps, rejected ones included (default 64); a solve that
        needs more stops there with result 1, its y1 being the state that was reached.
      per_sample: adaptive steps of its own for each entry of the state's leading axis; the field
        then sees a leading axis of 1. Otherwise the batch shares its steps, and an answer depends
        on the batch it came in. With fixed steps there is nothing to share.
      key: a PRNG key. The terms are then called with a key as a fourth argument: under 'checkpoint'
        and 'store' one key a fixed step, shared by its stages; else one key for the whole solve
        (one a sample with `per_sample`), so that diffrax's solvers meet one and the same function.
      policy: the name of one of `jax.checkpoint_policies`: what 'checkpoint' may keep.

    Returns:
      A Solution.

    Raises:
      ValueError: a name, a combination or a dtype that is not accepted; says which and what is.

    Example:
      >>> import jax.numpy as jnp
      >>> field = VectorField(terms=(lambda t, y, a: a * y,))
      >>> solution = integrate(field, jnp.ones(1), -1.0, solver="rk4", steps=8)
      >>> round(float(solution.y1[0]), 4), solution.nfe.tolist()
      (0.3679, [32])
    """
    _check_solve(len(field.terms), y0, solver, steps, adjoint, rtol, atol, max_steps, policy)
    dtype = jnp.result_type(*jax.tree.leaves(y0))
    problem = _Problem(_in_state_dtype(field), y0, params, key, solver, adjoint)
    if rtol is None:
        times = make_grid(t0, t1, DEFAULT_STEPS if steps is None else steps, dtype)
        picks = None if ts is None else grid_indices(ts, times)
        if adjoint in ("checkpoint", "store"):
            solution = _scan_steps(problem, times, picks, policy)
        else:
            solution = _diffeqsolve_steps(problem, times, picks)
        return _per_sample(solution, y0) if per_sample else solution
    adaptive = _Adaptive(
        t0=jnp.asarray(t0, dtype),
        t1=jnp.asarray(t1, dtype),
        ts=None if ts is None else jnp.asarray(ts, dtype),
        rtol=rtol,
        atol=DEFAULT_ATOL if atol is None else atol,
        max_steps=DEFAULT_MAX_STEPS if max_steps is None else max_steps,
    )
    return (_adaptive_steps_per_sample if per_sample else _adaptive_steps)(problem, adaptive)


class _Problem(NamedTuple):
    """What is solved, and how."""

    field: VectorField
    y0: State
    params: Params
    key: jax.Array | None
    solver: str
    adjoint: str

    @property
    def args(self) -> tuple[Any, ...]:
        """What a term takes behind t and y."""
        return (self.params,) if self.key is None else (self.params, self.key)


class _Adaptive(NamedTuple):
    """Between which times, and how accurately."""

    t0: jax.Array
    t1: jax.Array
    ts: jax.Array | None
    rtol: float
    atol: float
    max_steps: int


def _check_solve(terms, y0, solver, steps, adjoint, rtol, atol, max_steps, policy) -> None:
    checks.check_names(solver, adjoint, policy)
    checks.check_steps(solver, steps, adjoint, rtol, atol, max_steps)
    if solvers.is_splitting(solver) and terms < 2:
        raise ValueError(
            f"solver {solver!r} splits a field of two terms or more; this field has {terms}: "
            "give its terms one by one, or take 'euler'"
        )
    dtypes = {jnp.result_type(leaf) for leaf in jax.tree.leaves(y0)}
    if not dtypes <= {jnp.dtype("float32")} and not dtypes <= {jnp.dtype("float64")}:
        given = ", ".join(sorted(str(dtype) for dtype in dtypes))
        raise ValueError(
            f"the state is float32 throughout, or float64 throughout; {given} was given: cast y0, "
            "and let the field compute in a lower precision inside its terms"
        )


def _in_state_dtype(field: VectorField) -> VectorField:
    """The same field, its slopes cast to the state's dtype: a bfloat16 field never sets it."""

    def cast(function: Term) -> Term:
        def term(t, y, params, *key):
            slope = function(t, y, params, *key)
            return jax.tree.map(lambda y, dy: dy.astype(y.dtype), y, slope)

        return term

    return VectorField(tuple(cast(term) for term in field.terms), cast(field))


def _sum(slopes: list[State]) -> State:
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *slopes)


def _per_sample(solution: Solution, y0: State) -> Solution:
    """Gives the counts of a shared solve the leading batch axis of per-sample ones."""
    batch = jax.tree.leaves(y0)[0].shape[0]
    spread = [jnp.broadcast_to(count, (batch, *count.shape)) for count in solution[2:]]
    return Solution(solution.y1, solution.ys, *spread)


def _diffrax_terms(field: VectorField, solver: str):
    """The field as the terms the solver takes; their args are (params, *key)."""

    def ode_term(function: Term) -> diffrax.ODETerm:
        return diffrax.ODETerm(lambda t, y, args: function(t, y, *args))

    if solvers.is_splitting(solver):
        return diffrax.MultiTerm(*(ode_term(term) for term in field.terms))
    return ode_term(field)


def _scan_steps(problem: _Problem, grid, picks, policy: str | None) -> Solution:
    """Fixed steps as a scan over single steps: diffrax's documented manual stepping."""
    field, y0, params, key, solver, adjoint = problem
    method, tableau = solvers.get(solver), solvers.tableau(solver)
    terms, steps = _diffrax_terms(field, solver), grid.shape[0] - 1
    rules = getattr(jax.checkpoint_policies, policy) if policy else None
    recompute = adjoint == "checkpoint"

    def step(y, t0, t1, *args):
        if tableau is None:
            return method.step(terms, t0, t1, y, args, None, made_jump=False)[0]
        slope = jax.checkpoint(field, policy=rules) if recompute else field
        evaluate = lambda stage, t, y: slope(t, y, *args)
        return solvers.unrolled_step(tableau, evaluate, t0, t1, y)

    if recompute:
        step = jax.checkpoint(step, policy=rules, prevent_cse=False)

    def body(y, xs):
        n, t0, t1 = xs
        keys = () if key is None else (jax.random.fold_in(key, n),)
        y = step(y, t0, t1, params, *keys)
        return y, None if picks is None else y

    if steps == 1:
        y1, saved = body(y0, (0, grid[0], grid[1]))
        saved = jax.tree.map(lambda y: y[None], saved)
    else:
        y1, saved = jax.lax.scan(body, y0, (jnp.arange(steps), grid[:-1], grid[1:]))
    ys = None
    if picks is not None:
        ys = jax.tree.map(lambda y0, ys: jnp.concatenate([y0[None], ys])[picks], y0, saved)
    nfe = jnp.asarray(steps * solvers.evaluations(solver, len(field.terms)))
    return Solution(y1, ys, nfe, jnp.int32(steps), jnp.int32(0), jnp.int32(SUCCESS))


def _diffeqsolve_steps(problem: _Problem, grid, picks) -> Solution:
    """Fixed steps through `diffeqsolve`, for its adjoints."""
    steps, tableau = grid.shape[0] - 1, solvers.tableau(problem.solver)
    ts = None if picks is None else grid[picks]
    times = (grid[0], grid[-1], (grid[-1] - grid[0]) / steps)
    solution = _diffeqsolve(problem, times, ts, diffrax.ConstantStepSize(), steps)
    nfe = steps * solvers.evaluations(problem.solver, len(problem.field.terms))
    if tableau is not None:  # diffrax evaluates the error's stage too
        nfe = np.full_like(nfe, int(tableau.fsal) + steps * (tableau.num_stages - tableau.fsal))
    return solution._replace(nfe=jnp.asarray(nfe))


def _adaptive_steps(problem: _Problem, adaptive: _Adaptive) -> Solution:
    """Adaptive steps through `diffeqsolve`.

    The first slope is evaluated here: it chooses the first step's size, and an FSAL solver is
    handed it as its first stage, so that a rejected first step does not evaluate it again.
    """
    tableau: Any = solvers.tableau(problem.solver)
    slope = problem.field(adaptive.t0, problem.y0, *problem.args)
    dt0 = _first_step(problem, slope, adaptive)
    state = None
    if tableau.fsal:
        nondifferentiable = problem.adjoint == "backsolve"
        state = (jnp.array(False), jax.lax.stop_gradient(slope) if nondifferentiable else slope)
    times = (adaptive.t0, adaptive.t1, dt0)
    controller = diffrax.PIDController(rtol=adaptive.rtol, atol=adaptive.atol)
    solution = _diffeqsolve(problem, times, adaptive.ts, controller, adaptive.max_steps, state)
    attempts = solution.accepted + solution.rejected
    nfe = 2 + attempts * (tableau.num_stages - tableau.fsal)
    return solution._replace(nfe=jnp.broadcast_to(nfe, (len(problem.field.terms),)))


def _adaptive_steps_per_sample(problem: _Problem, adaptive: _Adaptive) -> Solution:
    """A solve for each entry of the leading axis; the field sees a leading axis of 1."""

    def solve(y0, key):
        alone = problem._replace(y0=jax.tree.map(lambda y: y[None], y0), key=key)
        solution = _adaptive_steps(alone, adaptive)
        ys = jax.tree.map(lambda y: y[:, 0], solution.ys)
        return solution._replace(y1=jax.tree.map(lambda y: y[0], solution.y1), ys=ys)

    batch = jax.tree.leaves(problem.y0)[0].shape[0]
    keys = None if problem.key is None else jax.random.split(problem.key, batch)
    ys_axis = None if adaptive.ts is None else 1
    axes: Any = Solution(0, ys_axis, 0, 0, 0, 0)  # pyright: ignore[reportArgumentType]
    return jax.vmap(solve, out_axes=axes)(problem.y0, keys)


def _first_step(problem: _Problem, slope: State, adaptive: _Adaptive) -> jax.Array:
    """Chooses the first step's size with one more evaluation.

    Source: Hairer, Norsett, Wanner, 'Solving Ordinary Differential Equations I', 1993, II.4.
    """
    t0, t1, _, rtol, atol, _ = adaptive
    field, order = problem.field, solvers.order(problem.solver)
    y0, slope, args = jax.lax.stop_gradient((problem.y0, slope, problem.args))
    scale = jax.tree.map(lambda y: atol + rtol * jnp.abs(y), y0)

    def norm(state: State) -> jax.Array:
        flat = jax.tree.map(lambda y, s: jnp.ravel(y / s), state, scale)
        return jnp.sqrt(jnp.mean(jnp.square(jnp.concatenate(jax.tree.leaves(flat)))))

    size, speed = norm(y0), norm(slope)
    small = (size < 1e-5) | (speed < 1e-5)
    trial = jnp.where(small, 1e-6, 0.01 * size / jnp.where(small, 1.0, speed))
    trial = jnp.minimum(trial, jnp.abs(t1 - t0))
    step = jnp.sign(t1 - t0) * trial
    moved = jax.tree.map(lambda y, dy: y + step * dy, y0, slope)
    bend = jax.tree.map(jnp.subtract, field(t0 + step, moved, *args), slope)
    fastest = jnp.maximum(speed, norm(bend) / trial)
    flat = fastest <= 1e-15
    chosen = jnp.where(
        flat,
        jnp.maximum(1e-6, 1e-3 * trial),
        (0.01 / jnp.where(flat, 1.0, fastest)) ** (1 / order),
    )
    return jnp.sign(t1 - t0) * jnp.minimum(jnp.minimum(100 * trial, chosen), jnp.abs(t1 - t0))


def _diffeqsolve(problem: _Problem, times, ts, controller, max_steps, state=None) -> Solution:
    """Solves with diffrax; times are (t0, t1, dt0). The nfe is the caller's to fill in."""
    t0, t1, dt0 = times
    solved = diffrax.diffeqsolve(
        _diffrax_terms(problem.field, problem.solver),
        solvers.get(problem.solver),
        t0,
        t1,
        dt0,
        problem.y0,
        problem.args,
        saveat=diffrax.SaveAt(t1=True, ts=ts),
        stepsize_controller=controller,
        adjoint=_diffrax_adjoint(problem.adjoint),
        max_steps=max_steps,
        solver_state=state,
        throw=False,
    )
    attempts = jnp.asarray(solved.stats["num_steps"], jnp.int32)
    accepted = jnp.asarray(solved.stats["num_accepted_steps"], jnp.int32)
    exhausted = solved.result == diffrax.RESULTS.max_steps_reached
    failure = jnp.where(exhausted, MAX_STEPS_REACHED, FAILED)
    result = jnp.where(solved.result == diffrax.RESULTS.successful, SUCCESS, failure)
    return Solution(
        y1=jax.tree.map(lambda ys: ys[-1], solved.ys),
        ys=None if ts is None else jax.tree.map(lambda ys: ys[:-1], solved.ys),
        nfe=jnp.int32(0),
        accepted=accepted,
        rejected=attempts - accepted,
        result=result.astype(jnp.int32),
    )


def _diffrax_adjoint(adjoint: str) -> diffrax.AbstractAdjoint:
    if adjoint == "checkpoint":
        # diffrax's checkpointed loop has no transpose inside shard_map (diffrax#735, #738).
        adjoint = "direct" if jax.sharding.get_abstract_mesh().manual_axes else "recursive"
    kinds = {
        "recursive": diffrax.RecursiveCheckpointAdjoint,
        "direct": diffrax.DirectAdjoint,
        "backsolve": diffrax.BacksolveAdjoint,
    }
    return kinds[adjoint]()
