"""Integrates a vector field over depth: fixed or adaptive steps, any solver, any adjoint."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from odeformer.checks import plain
from odeformer.errors import check_flag
from odeformer.ode import checks
from odeformer.ode.diffeqsolve import (
    diffrax_adaptive_steps,
    diffrax_adaptive_steps_per_sample,
    diffrax_fixed_steps,
)
from odeformer.ode.problem import (
    DEFAULT_STEPS,
    Params,
    Problem,
    Solution,
    SolveSettings,
    Span,
    State,
    Term,
    VectorField,
    in_state_dtype,
)
from odeformer.ode.reversible import scan_pairs
from odeformer.ode.solvers import Solver
from odeformer.ode.steps import scan_fixed_steps
from odeformer.ode.sums import carry, uncarried
from odeformer.ode.time_checks import as_span, in_order
from odeformer.ode.times import step_indices, step_times


def integrate(
    field: VectorField | Term,
    y0: State,
    params: Params,
    t0: float = 0.0,
    t1: float = 1.0,
    solver: Solver = "rk4",
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
    reversible: float | None = None,
    params_axes: Any = None,
    weights: State | None = None,
    sums: Sequence[str] = (),
    prevent_cse: bool = True,
    throw: bool = False,
) -> Solution:
    """Solves dy/dt = f(t, y, params) from t0 to t1: fixed steps, or adaptive ones given `rtol`.

    Args:
      field: the vector field, or a function f(t, y, params) -> dy as a field of one term.
      y0: the state at t0, a pytree of float32 arrays, or of float64 arrays: time is of that dtype.
      params: passed to the field's terms; gradients flow to it.
      t0: start time. Traced t0 and t1 have gradients under all adjoints but 'backsolve', even where
        they are equal. If a time is not finite, the states are NaN and the result is 2.
      t1: end time.
      solver: a name of `solvers.NAMES`, or an explicit solver of diffrax, such as
        `diffrax.Heun()`. With `rtol` it must have an error estimate.
      steps: number of equal fixed steps (default 8).
      adjoint: how gradients are computed.
        'checkpoint': fixed steps recompute each step and its stages, and store one state per step;
          for adaptive steps it means 'recursive', and 'direct' inside shard_map.
        'store': fixed steps only; everything is stored, nothing recomputed.
        'recursive': diffrax's binomial checkpointing: memory grows with the root of the number of
          steps. First derivatives in reverse mode only, as under 'backsolve'.
        'direct': diffrax's plain differentiation through the solve; forward mode and second
          derivatives work too, as they do under 'checkpoint' and 'store' with fixed steps.
        'backsolve': the continuous adjoint equation, solved backwards, in memory that does not
          grow with the steps. Its gradient is that of the exact flow, NOT of the computed one:
          wrong at coarse steps (for 12 Euler steps of a 12-layer field its norm was 577 instead of
          704) and right only as the steps become small. Not for the splittings; gradients with
          respect to t0 and t1 are refused. With ts, all times must be known before tracing.
        'reversible': only for a pair, see `reversible`: states are recovered backwards, and only
          the last pair is stored. Exact up to rounding, in memory that does not grow with the
          steps. First derivatives in reverse mode only.
      ts: times at which to return the states, too, in order from t0 to t1. With fixed steps they
        must be known before tracing, and lie on the grid of the steps. With adaptive steps the
        states are interpolated; the compiled program checks the order of ts by a callback to
        Python, so `jax.export` refuses it.
      rtol: relative tolerance of a step's local error; chooses adaptive steps.
      atol: absolute tolerance (default 1e-6).
      max_steps: bound on the adaptive steps, rejected ones included (default 64). A solve that
        needs more stops there with result 1: y1 is then the last state that it reached, and ys are
        infinite at later times (under 'backsolve' with ts, y1 is infinite, too).
      per_sample: whether each entry of the state's leading axis takes its own adaptive steps; the
        field then sees a leading axis of 1. The solution of an entry is the same in every batch, to
        float32 rounding: XLA orders sums by the size of the batch. Otherwise the batch shares its
        steps, and a solution depends on the batch. Fixed steps are the same either way.
      key: a PRNG key. The terms are then called with a key as a fourth argument: under 'checkpoint'
        and 'store' one key per fixed step, shared by its stages; else one key for the whole solve
        (one per sample with `per_sample`), so that for diffrax the field is one function.
      policy: the name of one of `jax.checkpoint_policies`, which says what 'checkpoint' may store
        under fixed steps.
      reversible: lambda in (0, 1], such as 0.999: fixed steps move a pair of states, by any solver,
        and can be undone. This is ANOTHER solver, with twice the evaluations; the adjoints
        'checkpoint', 'store' and 'reversible' compute the same gradient of it. Along every
        contracting direction, a slope a below -(1 - lambda) / h, the pair is unstable: its gap
        starts at the local error, which is small under 'midpoint' and 'rk4' and large under solvers
        of first order (a warning says so), and grows like exp(|a| t). If the field computes in
        bfloat16, deep and trained, its states are not recovered exactly. Where lambda^-steps eps
        exceeds 1e-3 the solve is refused. See `odeformer.ode.reversible`.
      params_axes: for `per_sample`, as the in_axes of `jax.vmap`: 0 for the parts of params that
        have the state's leading axis (such as masks), None for those that all samples share. A term
        sees the former with a leading axis of 1, too.
      weights: of the state's entries in the error norm of adaptive steps and in the sums, a pytree
        of the state's structure, broadcast to it; 0 leaves out an entry, such as padding. (The
        backward solve of 'backsolve' weighs all entries equally.)
      sums: what to sum along the solution: 'kinetic', the integral of mean(f^2), and 'error', the
        sum over the steps of |h| times the root mean square of the solver's error estimate. Means
        are over all axes but the state's leading one. Runge-Kutta methods integrate f^2 by their
        own stages; the other solvers use ((y1 - y0) / h)^2 of whole steps. 'error' needs a solver
        with an error estimate, and an adjoint other than 'backsolve'; fixed steps then also
        evaluate the stage that only the estimate reads, and of adaptive steps only accepted ones
        count. Sums do not change the steps. Sources: arXiv 2002.02798, arXiv 2105.03918.
      prevent_cse: as for `jax.checkpoint`, under 'checkpoint' and a single step: keeps XLA from
        merging the recomputation with the original. A solve inside a scan does not need it, and
        several steps are a scan.
      throw: whether to raise an error if the result is not success; for use outside of
        transformations (jit, grad, vmap), inside which a result has no value yet.

    Returns:
      A Solution.

    Raises:
      ValueError: a name, a combination, a value, a time or a dtype that is not accepted, or a term
        whose slope is not like the state; says which, and what is accepted. Also a derivative that
        the adjoint does not have, when it is taken.
      RuntimeError: a result that is not success, with `throw`.

    Examples:
      >>> import jax.numpy as jnp
      >>> field = VectorField(terms=(lambda t, y, a: a * y,))
      >>> solution = integrate(field, jnp.ones(1), -1.0, solver="rk4", steps=8)
      >>> round(float(solution.y1[0]), 4), solution.nfe.tolist()
      (0.3679, [32])
    """
    settings = SolveSettings(
        solver=solver,
        steps=steps,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
        per_sample=per_sample,
        adjoint=adjoint,
        policy=policy,
        reversible=reversible,
    )
    check_flag(prevent_cse=plain(prevent_cse), throw=plain(throw))

    solution = solve(
        field,
        y0,
        params,
        settings,
        t0=t0,
        t1=t1,
        ts=ts,
        key=key,
        params_axes=params_axes,
        weights=weights,
        sums=sums,
        prevent_cse=prevent_cse,
    )
    if throw:
        checks.check_success(solution, settings)

    return solution


def solve(
    field: VectorField | Term,
    y0: State,
    params: Params,
    settings: SolveSettings,
    *,
    t0: Any = 0.0,
    t1: Any = 1.0,
    ts: Any = None,
    key: jax.Array | None = None,
    params_axes: Any = None,
    weights: State | None = None,
    sums: Sequence[str] = (),
    prevent_cse: bool = True,
) -> Solution:
    """Solves dy/dt = f(t, y, params) as `integrate` does, under settings that were checked."""
    checks.check_sums_of(settings, sums)
    y0 = checks.as_state(y0, settings.per_sample, bool(sums))
    field = checks.as_field(field)
    checks.check_axes(params_axes)

    problem = Problem(
        field=in_state_dtype(field),
        y0=y0,
        params=params,
        key=key,
        settings=settings,
        params_axes=params_axes,
        weights=checks.as_weights(weights, y0),
        prevent_cse=prevent_cse,
        sums=tuple(sums),
    )
    span = as_span(t0, t1, ts)

    # diffrax cannot save at no times at all.
    if span.ts is not None and span.ts.size == 0:
        solution = _solve(problem, span._replace(ts=None))
        return solution._replace(ys=jax.tree.map(lambda y: jnp.zeros((0, *y.shape), y.dtype), y0))

    return _solve(problem, span)


def _solve(problem: Problem, span: Span) -> Solution:
    # Time has the state's dtype: bfloat16 times would give diffrax a wrong number of steps.
    settings, dtype = problem.settings, jnp.result_type(*jax.tree.leaves(problem.y0))
    if settings.adaptive:
        per_sample = settings.per_sample
        take_steps = diffrax_adaptive_steps_per_sample if per_sample else diffrax_adaptive_steps
        return _carrying(take_steps, problem, in_order(span, dtype))

    steps = DEFAULT_STEPS if settings.steps is None else settings.steps
    times = step_times(span.t0, span.t1, steps, dtype)
    indices = None if span.ts is None else step_indices(span.ts, times)

    if settings.reversible is not None:
        solution = scan_pairs(problem, times, indices)
    elif settings.adjoint in ("checkpoint", "store"):
        # A scan of our own costs what a scan over layers does; diffeqsolve was 1.4 times slower.
        solution = scan_fixed_steps(problem, times, indices)
    else:
        take_steps = functools.partial(diffrax_fixed_steps, indices=indices)
        solution = _carrying(take_steps, problem, times)

    return _per_sample(solution, problem.y0) if settings.per_sample else solution


def _carrying(take_steps: Callable[..., Solution], problem: Problem, times: Any) -> Solution:
    """Solves by diffrax, with the sums, if there are any, as parts of the state."""
    if not problem.sums:
        return take_steps(problem, times)

    first, last = (times.t0, times.t1) if isinstance(times, Span) else (times[0], times[-1])
    return uncarried(take_steps(carry(problem), times), problem, first, last)


def _per_sample(solution: Solution, y0: State) -> Solution:
    """Gives the counts of a shared solve the leading batch axis that per-sample counts have."""
    batch = jax.tree.leaves(y0)[0].shape[0]
    counts = solution._replace(y1=None, ys=None, gap=None, sums=None)
    counts = jax.tree.map(lambda count: jnp.broadcast_to(count, (batch, *count.shape)), counts)
    return counts._replace(y1=solution.y1, ys=solution.ys, gap=solution.gap, sums=solution.sums)
