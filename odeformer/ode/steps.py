"""Fixed steps: one step written out, and the scan over all of them."""

import functools
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from odeformer.ode import solvers
from odeformer.ode.problem import (
    ERROR,
    FAILED,
    KINETIC,
    SUCCESS,
    Problem,
    Solution,
    SolveSettings,
    State,
    Times,
)
from odeformer.ode.sums import SUMMED, of_slopes, of_states
from odeformer.ode.time_checks import all_finite
from odeformer.ode.times import states_at

# The name by which policies of `jax.checkpoint` know the state before each step.
STATE = "ode_state"


def scan_fixed_steps(problem: Problem, times: Times, indices: np.ndarray | None) -> Solution:
    """Takes equal steps by a scan, under adjoint 'checkpoint' or 'store'.

    Args:
      problem: what is solved, with one of these adjoints.
      times: between the steps, [steps + 1].
      indices: of the times at which states are returned, int [n]; None if none are.
    """
    field, settings, steps = problem.field, problem.settings, times.shape[0] - 1
    step, error = _make_step(problem, steps), ERROR in problem.sums

    def body(y, xs):
        n, t0, t1 = xs

        # A single step's state is the solve's argument, which is kept anyway.
        y = checkpoint_name(y, STATE) if steps > 1 else y

        # One key per step, shared by its stages: within a step the field is one function.
        keys = () if problem.key is None else (jax.random.fold_in(problem.key, n),)
        y, added = step(y, t0, t1, problem.params, *keys)
        return y, (None if indices is None else y, added)

    grid = jnp.asarray(times)
    if steps == 1:
        y1, saved = body(problem.y0, (0, grid[0], grid[1]))
        saved = jax.tree.map(lambda y: y[None], saved)
    else:
        y1, saved = jax.lax.scan(body, problem.y0, (jnp.arange(steps), grid[:-1], grid[1:]))

    ys, added = saved
    counts = count_fixed_steps(settings, len(field.terms), times, error)
    return counts._replace(
        y1=y1,
        ys=states_at(problem.y0, ys, indices),
        sums={name: x.sum(axis=0) for name, x in added.items()} if problem.sums else None,
    )


def count_fixed_steps(
    settings: SolveSettings, terms: int, times: Times, error: bool = False
) -> Solution:
    """Returns a Solution with the counts of fixed steps, but without states.

    Args:
      settings: of the steps.
      terms: number of the field's terms.
      times: between the steps, [steps + 1].
      error: whether the error is estimated too.
    """
    steps = times.shape[0] - 1

    # Where the times are known before tracing, the result is a constant of the program.
    finite = all_finite(times)
    result = SUCCESS if finite is True else jnp.where(finite, SUCCESS, FAILED)
    unknown: Any = None
    return Solution(
        y1=unknown,
        ys=None,
        nfe=jnp.asarray(steps * settings.evaluations(terms, error)),
        accepted=jnp.int32(steps),
        rejected=jnp.int32(0),
        result=jnp.asarray(result, jnp.int32),
    )


def _make_step(problem: Problem, steps: int):
    """Returns the function (y0, t0, t1, params, *key) -> (y1, what the step adds to the sums).

    Under 'checkpoint' the backward pass recomputes the step.
    """
    field, settings = problem.field, problem.settings
    method, tableau = solvers.get(settings.solver), solvers.tableau(settings.solver)
    terms = solvers.ode_terms(settings.solver, field)

    # Each stage is recomputed separately: recomputing the step alone would hold all its stages at
    # once, twice the memory.
    recompute = settings.adjoint == "checkpoint"
    policies: Any = jax.checkpoint_policies
    policy = getattr(policies, settings.policy) if settings.policy else None
    slope = jax.checkpoint(field, policy=policy) if recompute else field

    def step(y, t0, t1, *args):
        if tableau is None:
            y1, *_ = method.step(
                terms, t0=t0, t1=t1, y0=y, args=args, solver_state=None, made_jump=False
            )
            if not problem.sums:
                return y1, {}
            return y1, {KINETIC: of_states(problem.weights, t1 - t0, y, y1)}

        # diffrax's own step loops over stages: no forward mode, no strict shard_map.
        h, slopes = unrolled_slopes(
            tableau, lambda stage, t, y: slope(t, y, *args), t0, t1, y, error=ERROR in problem.sums
        )
        y1 = advance(y, h, tableau.b_sol, slopes)

        # Outside of the recomputed field, whose recomputation would need its last product for this.
        return y1, of_slopes(problem, tableau, h, slopes) if problem.sums else {}

    if not recompute:
        return step

    # The arrays that sums read are kept: else their gradient would evaluate the last stages again.
    if problem.sums:
        kept = policies.save_only_these_names(SUMMED)
        policy = policies.save_from_both_policies(kept, policy) if policy else kept

    # Inside the body of a scan XLA has no first computation to merge the recomputation with.
    return jax.checkpoint(step, policy=policy, prevent_cse=problem.prevent_cse and steps == 1)


def unrolled_step(
    tableau: diffrax.ButcherTableau,
    evaluate: Callable[[int, jax.Array, State], State],
    t0: jax.Array,
    t1: jax.Array,
    y0: State,
) -> State:
    """Takes one explicit Runge-Kutta step, its stages written out one after the other.

        k_i = f(t0 + c_i h, y0 + h sum_j a_ij k_j),    y1 = y0 + h sum_i b_i k_i,    h = t1 - t0

    The same numbers as diffrax's `solver.step`, without its loop over stages: so forward mode and
    strict `shard_map` work, XLA can count the operations, and `evaluate` knows its stage.

    Args:
      tableau: the method's Butcher tableau.
      evaluate: (stage, t, y) -> dy, with stage an int from 0.
      t0: the step's start, a scalar of the state's dtype.
      t1: the step's end, a scalar of the state's dtype.
      y0: the state at t0.

    Returns:
      The state at t1. Stages that only the error estimate reads are not evaluated.
    """
    h, slopes = unrolled_slopes(tableau, evaluate, t0, t1, y0)
    return advance(y0, h, tableau.b_sol, slopes)


def unrolled_slopes(
    tableau: diffrax.ButcherTableau,
    evaluate: Callable[[int, jax.Array, State], State],
    t0: jax.Array,
    t1: jax.Array,
    y0: State,
    *,
    error: bool = False,
) -> tuple[jax.Array, list[State]]:
    """Returns h and the slopes k_i of `unrolled_step`.

    Stages that only the error estimate reads are evaluated only with `error`.
    """
    h = t1 - t0
    slopes = [evaluate(0, t0, y0)]
    for stage in range(1, solvers.stages(tableau, error)):
        c = tableau.c[stage - 1]

        # t0 + h can differ from t1 in its last digit.
        t = t1 if c == 1 else t0 + float(c) * h
        y = advance(y0, h, tableau.a_lower[stage - 1], slopes)
        slopes.append(evaluate(stage, t, y))

    return h, slopes


def advance(y0: State | None, h: jax.Array, weights: np.ndarray, slopes: list[State]) -> State:
    """Returns y0 + h sum_i w_i k_i, or only the increment where y0 is None."""
    # Zeros are common in a tableau: their products would cost time, and 0 * inf is NaN.
    used = [(float(w), k) for w, k in zip(weights, slopes, strict=False) if w != 0]
    factors = [w for w, _ in used]

    def increment(*ks: jax.Array) -> jax.Array:
        return h * sum(w * k for w, k in zip(factors, ks, strict=True))

    if y0 is None:
        return jax.tree.map(increment, *(k for _, k in used))

    return jax.tree.map(lambda y, *ks: y + increment(*ks), y0, *(k for _, k in used))


def staged_step(
    solver: solvers.Solver,
    terms: int,
    evaluate: Callable[[int | None, int, jax.Array, State], State],
    t0: jax.Array,
    t1: jax.Array,
    y0: State,
) -> State:
    """Takes one fixed step of any solver, for a field that distinguishes its evaluations.

    Args:
      solver: the solver, or its name.
      terms: number of terms of the field.
      evaluate: (term, n, t, y) -> dy; term None stands for the sum of the terms, and n counts a
        term's evaluations within the step, from 0 to `evaluations(solver, terms)[term]` - 1.
      t0: the step's start, a scalar of the state's dtype.
      t1: the step's end, a scalar of the state's dtype.
      y0: the state at t0.

    Returns:
      The state at t1, the same as that of `integrate`.

    Raises:
      ValueError: a solver that is neither a Runge-Kutta method nor a splitting.
    """
    method, table = solvers.get(solver), solvers.tableau(solver)
    if table is not None:
        return unrolled_step(table, functools.partial(evaluate, None), t0, t1, y0)

    def euler(term: int | None, n: int, t: jax.Array, h: jax.Array, y: State) -> State:
        return jax.tree.map(lambda y, dy: y + h * dy, y, evaluate(term, n, t, y))

    # The only solver with neither tableau nor sub-steps is Euler: `get` refuses all others.
    if not isinstance(method, solvers.Splitting):
        return euler(None, 0, t0, t1 - t0, y0)

    # A splitting may evaluate a term twice in a step, so each term has a count of its own.
    y, counts = y0, [0] * terms
    for term, begin, length in method.substeps(terms):
        y = euler(term, counts[term], t0 + begin * (t1 - t0), length * (t1 - t0), y)
        counts[term] += 1

    return y
