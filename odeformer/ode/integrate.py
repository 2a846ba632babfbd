"""Integrates a vector field over depth: fixed or adaptive steps, any solver, any adjoint."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from odeformer.ode import settings, solvers
from odeformer.ode.diffeqsolve import (
    Adaptive,
    adaptive_steps,
    adaptive_steps_per_sample,
    fixed_steps,
)
from odeformer.ode.ends import all_finite
from odeformer.ode.field import (
    FAILED,
    SUCCESS,
    Params,
    Problem,
    Solution,
    State,
    VectorField,
    in_state_dtype,
)
from odeformer.ode.times import (
    Times,
    as_sequence,
    as_time,
    as_times,
    check_times,
    step_indices,
    step_times,
)

STATE = "ode_state"  # what policies of `jax.checkpoint` know the state before each step by
DEFAULT_STEPS, DEFAULT_ATOL, DEFAULT_MAX_STEPS = 8, 1e-6, 64


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
    params_axes: Any = None,
    weights: State | None = None,
    prevent_cse: bool = True,
    throw: bool = False,
) -> Solution:
    """Solves dy/dt = f(t, y, params) from t0 to t1: fixed steps, or adaptive ones given `rtol`.

    Args:
      field: the vector field.
      y0: the state at t0, a pytree of float32 arrays (float64: then time too is float64).
      params: what the field's terms are given as params; gradients flow to it.
      t0: start time. Traced ends are differentiated too, under all adjoints but 'backsolve', and
        where they are equal. Where a time is not finite the states are NaN, with result 2.
      t1: end time.
      solver: a name of `solvers.NAMES`. With `rtol` one with an error estimate.
      steps: number of equal fixed steps (default 8).
      adjoint: how gradients are computed.
        'checkpoint': fixed steps recompute each step and its stages, and store one state a step;
          adaptive steps mean 'recursive' by it, and 'direct' inside shard_map.
        'store': fixed steps only; everything is kept, nothing recomputed.
        'recursive': diffrax's binomial checkpointing: memory grows with the root of the steps. No
          forward mode and no second derivatives, nor has 'backsolve' these.
        'direct': diffrax's plain differentiation through the solve; forward mode and second
          derivatives work too, as they do under 'checkpoint' and 'store' with fixed steps.
        'backsolve': the continuous adjoint equation, solved backwards, in memory that does not
          grow with the steps. Its gradient is that of the exact flow, NOT of the computed one:
          wrong at coarse steps (at 12 Euler steps of a 12-layer field a norm of 577 was seen where
          704 is true) and right only as the steps get fine. Not for the splittings; gradients with
          respect to t0 and t1 are refused. With ts these, t0 and t1 are known before tracing.
      ts: times at which the states are returned too, in order from t0 to t1. Under fixed steps they
        are known before tracing, and lie on the grid of the steps; under adaptive steps they are
        interpolated, and the compiled program checks their order by a callback to Python, so that
        `jax.export` does not take it.
      rtol: relative tolerance of a step's local error; chooses adaptive steps.
      atol: absolute tolerance (default 1e-6).
      max_steps: bound on the adaptive steps, rejected ones included (default 64); a solve that
        needs more stops there with result 1, its y1 being the state that was reached, and its ys
        infinite at the times that were not (under 'backsolve' with ts y1 too).
      per_sample: adaptive steps of its own for each entry of the state's leading axis; the field
        then sees a leading axis of 1. An entry's answer is then the same in every batch, to
        float32 rounding: XLA orders sums by the size of the batch. Otherwise the batch shares its
        steps, and an answer depends on the batch it came in. With fixed steps there is nothing to
        share.
      key: a PRNG key. The terms are then called with a key as a fourth argument: under 'checkpoint'
        and 'store' one key a fixed step, shared by its stages; else one key for the whole solve
        (one a sample with `per_sample`), so that diffrax's solvers meet one and the same function.
      policy: the name of one of `jax.checkpoint_policies`: what 'checkpoint' may keep
        under fixed steps.
      params_axes: for `per_sample`, as the in_axes of `jax.vmap`: 0 for the parts of params that
        have the state's leading axis (masks, say), None for those that all samples share. A term
        sees the former with a leading axis of 1, too.
      weights: of the state's entries in the error norm of adaptive steps, a pytree of the state's
        structure, broadcast to it; 0 leaves an entry, such as padding, out. (The backward solve of
        'backsolve' weighs all alike.)
      prevent_cse: of `jax.checkpoint`, for 'checkpoint' and a single step: keeps XLA from merging
        the recomputation with what it recomputes. As with `jax.checkpoint` itself, a solve that
        stands inside a scan does not need it; several steps are a scan of their own.
      throw: raise where the result is not success, rather than return it. For use outside of
        transformations (jit, grad, vmap), inside of which no result has a value yet.

    Returns:
      A Solution.

    Raises:
      ValueError: a name, a combination, a value, a time or a dtype that is not accepted, or a term
        whose slope is not like the state; says which, and what is accepted. Also a derivative that
        the adjoint does not have, when it is taken.
      RuntimeError: a result that is not success, given `throw`.

    Example:
      >>> import jax.numpy as jnp
      >>> field = VectorField(terms=(lambda t, y, a: a * y,))
      >>> solution = integrate(field, jnp.ones(1), -1.0, solver="rk4", steps=8)
      >>> round(float(solution.y1[0]), 4), solution.nfe.tolist()
      (0.3679, [32])
    """
    rtol, atol, steps, max_steps = map(settings.plain, (rtol, atol, steps, max_steps))
    settings.check_flags(per_sample=per_sample, prevent_cse=prevent_cse, throw=throw)
    settings.check_solve(solver, steps, adjoint, rtol, atol, max_steps, policy)
    y0 = settings.as_state(y0, per_sample)
    settings.check_field(field, solver)
    settings.check_axes(params_axes)
    weights = None if weights is None else settings.like_state(weights, y0)
    problem = Problem(in_state_dtype(field), y0, params, key, solver, adjoint, params_axes, weights)

    start, end = as_time("t0", t0), as_time("t1", t1)
    ts = None if ts is None else as_sequence(ts)
    no_times = ts is not None and ts.size == 0  # diffrax cannot save at none
    saved = None if no_times else ts

    if rtol is None:
        count = DEFAULT_STEPS if steps is None else steps
        solution = _fixed(problem, start, end, saved, count, policy, prevent_cse)
        solution = _per_sample(solution, y0) if per_sample else solution
    else:
        max_steps = DEFAULT_MAX_STEPS if max_steps is None else max_steps
        adaptive = _as_adaptive(y0, start, end, saved, rtol, atol, max_steps)
        solution = (adaptive_steps_per_sample if per_sample else adaptive_steps)(problem, adaptive)

    if no_times:
        solution = solution._replace(
            ys=jax.tree.map(lambda y: jnp.zeros((0, *y.shape), y.dtype), y0)
        )
    if throw:
        settings.check_success(solution, max_steps)
    return solution


def _fixed(
    problem: Problem,
    t0: Times,
    t1: Times,
    ts: Times | None,
    steps: int,
    policy: str | None,
    prevent_cse: bool,
) -> Solution:
    times = step_times(t0, t1, steps, _dtype(problem.y0))
    indices = None if ts is None else step_indices(ts, times)
    if problem.adjoint in ("checkpoint", "store"):
        return _scan_steps(problem, times, indices, policy, prevent_cse)
    return fixed_steps(problem, times, indices)


def _as_adaptive(
    y0: State,
    t0: Times,
    t1: Times,
    ts: Times | None,
    rtol: float,
    atol: float | None,
    max_steps: int,
) -> Adaptive:
    dtype = _dtype(y0)
    adaptive = Adaptive(
        t0=as_times(t0, dtype),
        t1=as_times(t1, dtype),
        ts=None if ts is None else as_times(ts, dtype),
        rtol=float(rtol),
        atol=DEFAULT_ATOL if atol is None else float(atol),
        max_steps=max_steps,
    )
    if adaptive.ts is not None:
        check_times(adaptive.ts, adaptive.t0, adaptive.t1)
    return adaptive


def _dtype(y0: State) -> Any:
    return jnp.result_type(*jax.tree.leaves(y0))


def _per_sample(solution: Solution, y0: State) -> Solution:
    """Gives the counts of a shared solve the leading batch axis of per-sample ones."""
    batch = jax.tree.leaves(y0)[0].shape[0]
    spread = [jnp.broadcast_to(count, (batch, *count.shape)) for count in solution[2:]]
    return Solution(solution.y1, solution.ys, *spread)


def _scan_steps(
    problem: Problem,
    times: Times,
    indices: np.ndarray | None,
    policy: str | None,
    prevent_cse: bool,
) -> Solution:
    """Fixed steps as a scan over single steps: diffrax's documented manual stepping."""
    field, y0, params, key, solver, adjoint, *_ = problem
    method, tableau = solvers.get(solver), solvers.tableau(solver)
    terms, steps = solvers.ode_terms(solver, field), times.shape[0] - 1
    rules = getattr(jax.checkpoint_policies, policy) if policy else None
    recompute = adjoint == "checkpoint"

    def step(y, t0, t1, *args):
        if tableau is None:
            return method.step(terms, t0, t1, y, args, None, made_jump=False)[0]
        slope = jax.checkpoint(field, policy=rules) if recompute else field
        evaluate = lambda stage, t, y: slope(t, y, *args)
        return solvers.unrolled_step(tableau, evaluate, t0, t1, y)

    if recompute:  # in a scan's body XLA has no first computation to merge the second with
        step = jax.checkpoint(step, policy=rules, prevent_cse=prevent_cse and steps == 1)

    def body(y, xs):
        n, t0, t1 = xs
        y = checkpoint_name(y, STATE) if steps > 1 else y
        keys = () if key is None else (jax.random.fold_in(key, n),)
        y = step(y, t0, t1, params, *keys)
        return y, None if indices is None else y

    grid = jnp.asarray(times)
    if steps == 1:
        y1, saved = body(y0, (0, grid[0], grid[1]))
        saved = jax.tree.map(lambda y: y[None], saved)
    else:
        y1, saved = jax.lax.scan(body, y0, (jnp.arange(steps), grid[:-1], grid[1:]))
    ys = None
    if indices is not None:
        ys = jax.tree.map(lambda y0, ys: jnp.concatenate([y0[None], ys])[indices], y0, saved)
    nfe = jnp.asarray(steps * solvers.evaluations(solver, len(field.terms)))
    finite = all_finite(times)
    result = SUCCESS if finite is True else jnp.where(finite, SUCCESS, FAILED)
    return Solution(y1, ys, nfe, jnp.int32(steps), jnp.int32(0), jnp.asarray(result, jnp.int32))
