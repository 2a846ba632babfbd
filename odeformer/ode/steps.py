"""One step, written out: of a Runge-Kutta method, and of any solver."""

import functools
from collections.abc import Callable

import diffrax
import jax
import numpy as np

from odeformer.ode import solvers
from odeformer.ode.field import State


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
    h = t1 - t0

    def advance(weights: np.ndarray, slopes: list[State]) -> State:
        # Zeros are common in a tableau; a product with one would be computed, and keep 0 * inf.
        used = [(float(w), k) for w, k in zip(weights, slopes, strict=False) if w != 0]
        factors = [w for w, _ in used]

        def leaf(y: jax.Array, *ks: jax.Array) -> jax.Array:
            return y + h * sum(w * k for w, k in zip(factors, ks, strict=True))

        return jax.tree.map(leaf, y0, *(k for _, k in used))

    # A stage that only the error estimate reads is left out, as fixed steps have no error.
    slopes = [evaluate(0, t0, y0)]
    for stage in range(1, solvers.stages(tableau)):
        c = tableau.c[stage - 1]

        # t0 + h can differ from t1 in its last digit.
        t = t1 if c == 1 else t0 + float(c) * h
        slopes.append(evaluate(stage, t, advance(tableau.a_lower[stage - 1], slopes)))

    return advance(tableau.b_sol, slopes)


def staged_step(
    name: str,
    terms: int,
    evaluate: Callable[[int | None, int, jax.Array, State], State],
    t0: jax.Array,
    t1: jax.Array,
    y0: State,
) -> State:
    """Takes one fixed step of any solver, for a field that distinguishes its evaluations.

    Args:
      name: of the solver.
      terms: number of terms of the field.
      evaluate: (term, n, t, y) -> dy; term None asks for the sum of the terms; n counts a term's
        evaluations within the step, from 0 to `evaluations(name, terms)[term]` - 1.
      t0: the step's start, a scalar of the state's dtype.
      t1: the step's end, a scalar of the state's dtype.
      y0: the state at t0.

    Returns:
      The state at t1, the same as that of `integrate`.
    """
    solver, table = solvers.get(name), solvers.tableau(name)
    if table is not None:
        return unrolled_step(table, functools.partial(evaluate, None), t0, t1, y0)

    def euler(term: int | None, n: int, t: jax.Array, h: jax.Array, y: State) -> State:
        return jax.tree.map(lambda y, dy: y + h * dy, y, evaluate(term, n, t, y))

    # Of the solvers without a tableau only Euler evaluates the sum.
    if not isinstance(solver, solvers.Splitting):
        return euler(None, 0, t0, t1 - t0, y0)

    # A splitting may evaluate a term twice in a step, so each term has a count of its own.
    y, counts = y0, [0] * terms
    for term, begin, length in solver.substeps(terms):
        y = euler(term, counts[term], t0 + begin * (t1 - t0), length * (t1 - t0), y)
        counts[term] += 1

    return y
