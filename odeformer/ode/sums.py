"""Sums along a solution: its kinetic energy, and the solver's own estimate of its error.

    kinetic = integral of mean(f^2) dt,     error = sum over steps of |h| rms(e)

e is the step's embedded error estimate, h sum_i (b_i - b*_i) k_i. Both are kept separately for each
entry of the state's leading axis, the batch, and mean and rms are over the rest of it.
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

# The name by which policies of `jax.checkpoint` know what the sums of a step read last.
SUMMED = "ode_summed"

# Where the state lies among the sums that a solver carries with it.
_STATE = "state"


def of_slopes(
    problem: Problem, tableau: diffrax.ButcherTableau, h: jax.Array, slopes: list[State]
) -> dict[str, jax.Array]:
    """Returns what one Runge-Kutta step adds to each sum, [B], from the slopes of its stages.

        kinetic: |h| sum_i b_i mean(k_i^2),    error: |h| rms(h sum_i e_i k_i)

    Args:
      problem: says which sums, and the weights of the means.
      tableau: the method's; its weights b_i may be negative.
      h: the step, a scalar.
      slopes: k_i, of every stage that a sum reads.
    """
    added: dict[str, jax.Array] = {}
    if KINETIC in problem.sums:
        weighted = [(float(b), k) for b, k in zip(tableau.b_sol, slopes, strict=False) if b != 0]
        factors, (*ks, last) = zip(*weighted, strict=True)

        # Summed over the stages first: one pass over the state reads them all.
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
    # Where an end is traced a step may be empty, and adds nothing.
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

    # An entry that is padding throughout has no mean: it counts as standing still.
    whole_B = total(weights)
    return total(jax.tree.map(jnp.multiply, weights, state)) / jnp.where(whole_B > 0, whole_B, 1)


def carry(problem: Problem) -> Problem:
    """Returns the problem with the sums next to its state, each an array of zeros [B] at t0.

    The kinetic energy is a quantity that moves by mean(f^2): a Runge-Kutta method integrates it by
    the weights b_i of its stages. The sums weigh nothing in the error norm, so that the steps are
    those that are taken without them.
    """
    leaf = jax.tree.leaves(problem.y0)[0]
    beside = dict.fromkeys(problem.sums, jnp.zeros(leaf.shape[:1], leaf.dtype))

    def carrying(function: Term, kinetic: bool) -> Term:
        def term(t, y, params, *key):
            params, weights = params
            slope = function(t, y[_STATE], params, *key)
            moved = {name: jnp.zeros_like(y[name]) for name in problem.sums}
            if kinetic and KINETIC in moved:
                moved[KINETIC] = mean_square(slope, weights)
            return {_STATE: slope, **moved}

        return term

    # The terms alone serve the splittings, whose kinetic energy is that of whole steps.
    terms = tuple(carrying(term, kinetic=False) for term in problem.field.terms)
    total = carrying(problem.field, kinetic=True)

    weights = problem.weights
    if weights is None:
        weights = jax.tree.map(jnp.ones_like, problem.y0)

    # The weights are an argument of the field too: for diffrax it may close over no array.
    return problem._replace(
        field=VectorField(terms, total),
        y0={_STATE: problem.y0, **beside},
        params=(problem.params, problem.weights),
        params_axes=(problem.params_axes, None if problem.weights is None else 0),
        weights={_STATE: weights, **beside},
    )


def carrying_solver(problem: Problem) -> diffrax.AbstractSolver:
    """Returns the problem's solver; for a problem of `carry` one that moves the sums by steps."""
    solver, backsolve = (
        solvers.get(problem.settings.solver),
        problem.settings.adjoint == "backsolve",
    )

    # The backward solve of 'backsolve' has a state of another structure, and no sum over steps.
    return solver if not problem.sums or backsolve else _Carrying(solver)


def uncarried(solution: Solution, problem: Problem, t0: Times, t1: Times) -> Solution:
    """Returns the solution of a problem of `carry` with the sums apart from the state.

    Args:
      solution: of it.
      problem: of it.
      t0: start.
      t1: end; where it lies before t0, f^2 was integrated backwards.
    """
    y1: Any = solution.y1
    sums = {name: y1[name] for name in problem.sums}
    if KINETIC in sums and not _is_of_steps(problem.settings):
        sums[KINETIC] = jnp.where(t1 >= t0, 1, -1) * sums[KINETIC]

    ys: Any = solution.ys
    return solution._replace(y1=y1[_STATE], ys=None if ys is None else ys[_STATE], sums=sums)


class _Carrying(diffrax.AbstractWrappedSolver):
    """A solver whose state holds sums over its steps, of those that are accepted."""

    # diffrax declares class variables where its own wrapper has properties, too.
    solver: diffrax.AbstractSolver  # pyright: ignore[reportIncompatibleVariableOverride]

    # Set by diffrax, on Runge-Kutta methods under 'direct', whose loop over stages it is of.
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
