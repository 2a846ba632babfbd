"""Sums along a solution: its kinetic energy, and the solver's own estimate of its error.

    kinetic = integral of mean(f^2) dt,     error = sum over steps of |h| rms(e)

e is the step's embedded error estimate, h sum_i (b_i - b*_i) k_i. Each entry of the state's leading
axis, the batch, has its own sums; mean and rms are over all other axes.
Sources: Finlay et al., 'How to train your neural ODE', 2020, arXiv 2002.02798 (kinetic energy);
Pal et al., 'Opening the blackbox', 2021, arXiv 2105.03918 (error estimate).
"""

import dataclasses
import functools
import math
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from odeformer.ode import solvers
from odeformer.ode.problem import (
    ERROR,
    KINETIC,
    Problem,
    Solution,
    SolveSettings,
    State,
    Term,
    Times,
    VectorField,
)

# The name by which policies of `jax.checkpoint` know the last array that the sums of a step read.
SUMMED = "ode_summed"

# The key of the state, next to the sums that a solver carries along with it.
_STATE = "state"


def of_slopes(
    problem: Problem, tableau: diffrax.ButcherTableau, h: jax.Array, slopes: list[State]
) -> dict[str, jax.Array]:
    """Returns what one Runge-Kutta step adds to each sum, [B], from the slopes of its stages.

        kinetic: |h| sum_i b_i mean(k_i^2),    error: |h| rms(h sum_i e_i k_i)

    Args:
      problem: says which sums to compute, and with which weights.
      tableau: of the method, whose weights b_i may be negative.
      h: the length of the step, a scalar.
      slopes: the k_i of every stage that a sum reads.
    """
    added: dict[str, jax.Array] = {}
    if KINETIC in problem.sums:
        weighted = [(float(b), k) for b, k in zip(tableau.b_sol, slopes, strict=False) if b != 0]
        factors, (*ks, last) = zip(*weighted, strict=True)

        # Stages are summed before the mean is taken, so that one pass over the state does both.
        energy = jax.tree.map(
            lambda *ks: sum(b * jnp.square(k) for b, k in zip(factors, ks, strict=True)),
            *ks,
            checkpoint_name(last, SUMMED),
        )
        added[KINETIC] = jnp.abs(h) * mean(energy, problem.weights)

    if ERROR in problem.sums:
        used = [(float(e), k) for e, k in zip(tableau.b_error, slopes, strict=False) if e != 0]
        factors = [e for e, _ in used]
        error = jax.tree.map(
            lambda *ks: h * sum(e * k for e, k in zip(factors, ks, strict=True)),
            *(k for _, k in used),
        )
        error = checkpoint_name(error, SUMMED)
        added[ERROR] = jnp.abs(h) * _root(mean_square(error, problem.weights))

    return added


def of_states(weights: State | None, h: jax.Array, y0: State, y1: State) -> jax.Array:
    """Returns the kinetic energy of a step without stages, |h| mean(((y1 - y0) / h)^2), [B]."""
    # A step may be empty where an end is traced: it then adds nothing, and divides by nothing.
    length = jnp.abs(h)
    inverse = jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)
    moved = jax.tree.map(jnp.subtract, y1, y0)
    return inverse * mean_square(moved, weights)


def mean_square(state: State, weights: State | None) -> jax.Array:
    """Returns the mean of the squares over all but the leading axis, weighted if asked, [B]."""
    return mean(jax.tree.map(jnp.square, state), weights)


def mean(state: State, weights: State | None) -> jax.Array:
    """Returns the mean over all but the leading axis, weighted if asked, [B]."""

    def total(tree: State) -> jax.Array:
        totals_B = [x.reshape(x.shape[0], -1).sum(axis=1) for x in jax.tree.leaves(tree)]
        return functools.reduce(jnp.add, totals_B)

    if weights is None:
        return total(state) / sum(math.prod(x.shape[1:]) for x in jax.tree.leaves(state))

    # An entry that is all padding has no mean: it counts as standing still.
    weight_B = total(weights)
    return total(jax.tree.map(jnp.multiply, weights, state)) / jnp.where(weight_B > 0, weight_B, 1)


def carry(problem: Problem) -> Problem:
    """Returns the problem with the sums as parts of its state, each an array [B], 0 at t0.

    The kinetic energy has the slope mean(f^2), which a Runge-Kutta method integrates by the weights
    b_i of its stages. The sums have no weight in the error norm: adaptive steps are the same as
    without them.
    """
    leaf = jax.tree.leaves(problem.y0)[0]
    zeros = dict.fromkeys(problem.sums, jnp.zeros(leaf.shape[:1], leaf.dtype))

    def carrying(function: Term, kinetic: bool) -> Term:
        def term(t, y, params, *key):
            params, weights = params
            slope = function(t, y[_STATE], params, *key)
            moved = {name: jnp.zeros_like(y[name]) for name in problem.sums}
            if kinetic and KINETIC in moved:
                moved[KINETIC] = mean_square(slope, weights)
            return {_STATE: slope, **moved}

        return term

    # Only splittings evaluate single terms, and their kinetic energy is that of whole steps.
    terms = tuple(carrying(term, kinetic=False) for term in problem.field.terms)
    total = carrying(problem.field, kinetic=True)

    weights = problem.weights
    if weights is None:
        weights = jax.tree.map(jnp.ones_like, problem.y0)

    # The weights reach the field through its arguments: under diffrax it may close over no array.
    return problem._replace(
        field=VectorField(terms, total),
        y0={_STATE: problem.y0, **zeros},
        params=(problem.params, problem.weights),
        params_axes=(problem.params_axes, None if problem.weights is None else 0),
        weights={_STATE: weights, **zeros},
    )


def carrying_solver(problem: Problem) -> diffrax.AbstractSolver:
    """Returns the problem's solver; for a problem of `carry` one that adds up sums over steps."""
    solver = solvers.get(problem.settings.solver)

    # The backward solve of 'backsolve' has a state of another structure, and no sum over steps.
    if not problem.sums or problem.settings.adjoint == "backsolve":
        return solver

    return _Carrying(solver)


def uncarried(solution: Solution, problem: Problem, t0: Times, t1: Times) -> Solution:
    """Returns the solution of a problem of `carry`, with the sums taken out of its state.

    Args:
      solution: the solution, whose states hold the sums.
      problem: the problem before `carry`.
      t0: start time.
      t1: end time; where it lies before t0, f^2 was integrated backwards.
    """
    y1: Any = solution.y1
    sums = {name: y1[name] for name in problem.sums}
    if KINETIC in sums and not _is_of_steps(problem.settings):
        sums[KINETIC] = jnp.where(t1 >= t0, 1, -1) * sums[KINETIC]

    ys: Any = solution.ys
    return solution._replace(y1=y1[_STATE], ys=None if ys is None else ys[_STATE], sums=sums)


class _Carrying(diffrax.AbstractWrappedSolver):
    """A solver whose state holds sums over its accepted steps."""

    # diffrax declares class variables where its own wrapper has properties, too.
    solver: diffrax.AbstractSolver  # pyright: ignore[reportIncompatibleVariableOverride]

    # Set by diffrax under 'direct': the kind of loop over the stages of a Runge-Kutta method.
    scan_kind: Any = None

    @property
    def term_structure(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.solver.term_structure

    @property
    def interpolation_cls(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.solver.interpolation_cls

    def order(self, terms):
        return self.solver.order(terms)

    def error_order(self, terms):
        return self.solver.error_order(terms)

    def init(self, terms, t0, t1, y0, args):
        return self.solver.init(terms, t0, t1, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        solver: Any = self.solver
        if self.scan_kind is not None:
            solver = dataclasses.replace(solver, scan_kind=self.scan_kind)

        y1, error, *others = solver.step(
            terms, t0=t0, t1=t1, y0=y0, args=args, solver_state=solver_state, made_jump=made_jump
        )
        (_, weights), *_ = args
        moved, length = {}, jnp.abs(jnp.asarray(t1 - t0))
        if ERROR in y1:
            moved[ERROR] = y0[ERROR] + length * _root(mean_square(error[_STATE], weights))
        if KINETIC in y1 and solvers.tableau(self.solver) is None:
            moved[KINETIC] = y0[KINETIC] + of_states(weights, length, y0[_STATE], y1[_STATE])

        return {**y1, **moved}, error, *others  # pyright: ignore[reportReturnType]

    def func(self, terms, t0, y0, args):
        return self.solver.func(terms, t0, y0, args)


def _is_of_steps(settings: SolveSettings) -> bool:
    """Whether the kinetic energy is one of whole steps, rather than one of the field's slopes."""
    return solvers.tableau(settings.solver) is None and settings.adjoint != "backsolve"


def _root(x: jax.Array) -> jax.Array:
    """The square root, whose gradient at 0 is 0: a field of zeros has no error."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)
