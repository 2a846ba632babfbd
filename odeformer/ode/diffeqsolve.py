"""Solves through `diffrax.diffeqsolve`: adaptive steps, and fixed ones for diffrax's adjoints."""

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from odeformer.ode import solvers
from odeformer.ode.derivatives import refuse_derivatives
from odeformer.ode.ends import Interval, amend, interval
from odeformer.ode.problem import (
    FAILED,
    MAX_STEPS_REACHED,
    SUCCESS,
    Problem,
    Solution,
    Span,
    State,
    Times,
)
from odeformer.ode.sums import carrying_solver
from odeformer.ode.time_checks import known_for_backsolve


def diffrax_fixed_steps(problem: Problem, times: Times, indices: np.ndarray | None) -> Solution:
    """Takes equal steps.

    Args:
      problem: with an adjoint of diffrax.
      times: between the steps, [steps + 1].
      indices: of the times at which states are returned, int [n]; None if none are.
    """
    steps, tableau = times.shape[0] - 1, solvers.tableau(problem.settings.solver)
    ts = None if indices is None else times[indices]
    adjoint = _in_shard_map(problem.settings.adjoint)
    problem, t0, t1 = refuse_derivatives(problem, times[0], times[-1], adjoint)
    over = interval(t0, t1, ts)

    size = abs(over.t1 - over.t0) / steps
    controller = _FirstStep(diffrax.ConstantStepSize(), jnp.asarray(size))
    solution = _diffeqsolve(problem, over, controller, steps)

    # Only an empty interval needs the slope, and only traced ends can turn out to be one.
    slope = None
    if over.lengths is not None and problem.settings.adjoint != "backsolve":
        slope = jax.lax.cond(
            over.t0 == over.t1,
            lambda: problem.field(jnp.asarray(over.t0), problem.y0, *problem.args),
            lambda: jax.tree.map(jnp.zeros_like, problem.y0),
        )

    # Unlike a step written out, diffrax also evaluates the stage that only the error reads; an FSAL
    # solver passes it on to the next step.
    nfe = steps * solvers.evaluations(problem.settings.solver, len(problem.field.terms))
    if tableau is not None:
        nfe = np.full_like(nfe, int(tableau.fsal) + steps * (tableau.num_stages - tableau.fsal))
    return amend(solution, over, slope)._replace(nfe=jnp.asarray(nfe))


def diffrax_adaptive_steps(problem: Problem, span: Span) -> Solution:
    """Takes steps of the sizes that the tolerances ask for, shared by the whole state.

    Args:
      problem: with a solver that has an error estimate.
      span: the interval; its times are in order and of the state's dtype.

    Returns:
      A Solution.
    """
    tableau: Any = solvers.tableau(problem.settings.solver)
    adjoint = _in_shard_map(problem.settings.adjoint)
    problem, t0, t1 = refuse_derivatives(problem, span.t0, span.t1, adjoint)
    over = interval(t0, t1, span.ts)

    slope = problem.field(jnp.asarray(over.t0), problem.y0, *problem.args)
    size = _first_step(problem, slope, jnp.asarray(over.t0), jnp.asarray(over.t1))

    # An FSAL solver receives the slope as its first stage, so that neither the first step nor its
    # repetition after a rejection evaluates it again.
    state = None
    if tableau.fsal:
        # BacksolveAdjoint differentiates y0 and the params only.
        nondifferentiable = problem.settings.adjoint == "backsolve"
        state = (jnp.array(False), jax.lax.stop_gradient(slope) if nondifferentiable else slope)

    # A Partial is a pytree: diffrax traces the controller, and with it the weights.
    norm = jax.tree_util.Partial(_norm, jax.lax.stop_gradient(problem.weights))
    rtol, atol = problem.settings.tolerances
    controller = _FirstStep(diffrax.PIDController(rtol=rtol, atol=atol, norm=norm), size)
    solution = _diffeqsolve(problem, over, controller, problem.settings.step_bound, state)

    # The slope at t0 and the trial of the first step, then the stages of each attempt.
    attempts = solution.accepted + solution.rejected
    nfe = 2 + attempts * (tableau.num_stages - tableau.fsal)
    nfe = jnp.broadcast_to(nfe, (len(problem.field.terms),))
    return amend(solution, over, slope)._replace(nfe=nfe)


def diffrax_adaptive_steps_per_sample(problem: Problem, span: Span) -> Solution:
    """Takes adaptive steps for each entry of the leading axis; the field sees an axis of 1.

    Args:
      problem: every leaf of its state has the same leading axis.
      span: the interval; its times are in order and of the state's dtype.

    Returns:
      A Solution, its counts with a leading batch axis.
    """

    def batch_of_one(tree):
        return jax.tree.map(lambda leaf: leaf[None], tree)

    def solve(y0, key, params, weights):
        # A field expects a batch: it gets a batch of one.
        params = jax.tree.map(
            lambda axis, part: part if axis is None else batch_of_one(part),
            problem.params_axes,
            params,
            is_leaf=lambda axis: axis is None,
        )
        sample = problem._replace(
            y0=batch_of_one(y0), key=key, params=params, weights=batch_of_one(weights)
        )
        solution = diffrax_adaptive_steps(sample, span)
        ys = jax.tree.map(lambda y: y[:, 0], solution.ys)
        return solution._replace(y1=jax.tree.map(lambda y: y[0], solution.y1), ys=ys)

    batch = jax.tree.leaves(problem.y0)[0].shape[0]
    keys = None if problem.key is None else jax.random.split(problem.key, batch)
    ys_axis = None if span.ts is None else 1
    # The states at ts have the times' axis in front.
    axes: Any = Solution(0, ys_axis, 0, 0, 0, 0)  # pyright: ignore[reportArgumentType]
    return jax.vmap(solve, in_axes=(0, 0, problem.params_axes, 0), out_axes=axes)(
        problem.y0, keys, problem.params, problem.weights
    )


def _first_step(problem: Problem, slope: State, t0: jax.Array, t1: jax.Array) -> jax.Array:
    """Chooses the first step's size, a length, with one more evaluation. It has no gradient.

    Source: Hairer, Norsett, Wanner, 'Solving Ordinary Differential Equations I', 1993, II.4.
    """
    field, order = problem.field, solvers.order(problem.settings.solver)
    rtol, atol = problem.settings.tolerances
    y0, slope, args, t0, t1 = jax.lax.stop_gradient((problem.y0, slope, problem.args, t0, t1))
    scale = jax.tree.map(lambda y: atol + rtol * jnp.abs(y), y0)

    def norm(state: State) -> jax.Array:
        return _norm(problem.weights, jax.tree.map(jnp.divide, state, scale))

    size, speed = norm(y0), norm(slope)
    # A trial step of a hundredth of the state's size...
    small = (size < 1e-5) | (speed < 1e-5)
    trial = jnp.where(small, 1e-6, 0.01 * size / jnp.where(small, 1.0, speed))
    trial = jnp.where(t0 == t1, 1.0, jnp.minimum(trial, jnp.abs(t1 - t0)))

    # ... shows how fast the slope changes, and so how long a step may be.
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

    # It may exceed the interval: diffrax cuts a step off at t1.
    return jnp.minimum(100 * trial, chosen)


def _norm(weights: State | None, state: State) -> jax.Array:
    """The root of the mean square over the state's entries, weighted where there are weights."""
    # The backward solve of 'backsolve' has a state of another structure, without weights.
    if weights is None or jax.tree.structure(weights) != jax.tree.structure(state):
        weights = jax.tree.map(jnp.ones_like, state)

    squares = jax.tree.map(lambda w, y: jnp.sum(w * jnp.square(y)), weights, state)
    total = jax.tree.map(jnp.sum, weights)
    return jnp.sqrt(sum(jax.tree.leaves(squares)) / sum(jax.tree.leaves(total)))


class _FirstStep(diffrax.AbstractStepSizeController):
    """Another controller with the first step's size, a length."""

    # `diffeqsolve` would check a dt0 by a callback while the program runs, and jax.export takes no
    # program with one.
    controller: diffrax.AbstractStepSizeController
    size: jax.Array

    def wrap(self, direction):
        return _FirstStep(self.controller.wrap(direction), self.size)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        return self.controller.init(
            terms,
            t0=t0,
            t1=t1,
            y0=y0,
            dt0=self.size,
            args=args,
            func=func,
            error_order=error_order,
        )

    def adapt_step_size(self, *args, **kwargs):
        return self.controller.adapt_step_size(*args, **kwargs)


def _diffeqsolve(
    problem: Problem, over: Interval, controller, max_steps: int, state=None
) -> Solution:
    """Solves with diffrax; the nfe is the caller's to fill in."""
    saveat, states = _save_at(problem.settings.adjoint, over.t0, over.t1, over.ts)
    solved = diffrax.diffeqsolve(
        solvers.ode_terms(problem.settings.solver, problem.field),
        carrying_solver(problem),
        t0=jnp.asarray(over.t0),
        t1=jnp.asarray(over.t1),
        dt0=None,
        y0=problem.y0,
        args=problem.args,
        saveat=saveat,
        stepsize_controller=controller,
        adjoint=_diffrax_adjoint(problem.settings.adjoint),
        max_steps=max_steps,
        solver_state=state,
        # To throw, diffrax calls back to Python, at an extra collective in sharded programs.
        throw=False,
    )

    attempts = jnp.asarray(solved.stats["num_steps"], jnp.int32)
    accepted = jnp.asarray(solved.stats["num_accepted_steps"], jnp.int32)
    exhausted = solved.result == diffrax.RESULTS.max_steps_reached
    failure = jnp.where(exhausted, MAX_STEPS_REACHED, FAILED)
    result = jnp.where(solved.result == diffrax.RESULTS.successful, SUCCESS, failure)

    y1, ys = states(solved.ys)
    return Solution(
        y1=y1,
        ys=ys,
        nfe=jnp.int32(0),
        accepted=accepted,
        rejected=attempts - accepted,
        result=result.astype(jnp.int32),
    )


def _save_at(
    adjoint: str, t0: Times, t1: Times, ts: Times | None
) -> tuple[diffrax.SaveAt, Callable[[Any], tuple[State, State | None]]]:
    """What diffrax saves, and how y1 and ys are read from it."""

    def last(ys: State) -> State:
        return jax.tree.map(lambda y: y[-1], ys)

    if ts is None:
        return diffrax.SaveAt(t1=True), lambda ys: (last(ys), None)

    # t1 apart from the ts: in one list with them, a solve that stops early puts its last state in
    # the first place that it left free.
    if adjoint != "backsolve":
        subs = (diffrax.SubSaveAt(t1=True), diffrax.SubSaveAt(ts=jnp.asarray(ts)))
        return diffrax.SaveAt(subs=subs), lambda ys: (last(ys[0]), ys[1])

    start, end, wanted = known_for_backsolve(t0, t1, ts)

    # BacksolveAdjoint takes one list only, and its gradient is NaN where that ends in an interval
    # of length zero: so t1 joins the ts, each time once.
    forwards = 1 if end >= start else -1
    times, places = np.unique(forwards * np.append(wanted, end), return_inverse=True)
    saved = jnp.asarray(forwards * times, t1.dtype)
    return diffrax.SaveAt(ts=saved), lambda ys: (
        last(ys),
        jax.tree.map(lambda y: y[places[:-1]], ys),
    )


def _in_shard_map(adjoint: str) -> str:
    """The adjoint, or the one that 'checkpoint' means here."""
    if adjoint != "checkpoint":
        return adjoint

    # diffrax's checkpointed loop has no transpose inside shard_map (diffrax#735, #738).
    return "direct" if jax.sharding.get_abstract_mesh().manual_axes else "recursive"


def _diffrax_adjoint(adjoint: str) -> diffrax.AbstractAdjoint:
    kinds = {
        "recursive": diffrax.RecursiveCheckpointAdjoint,
        "direct": diffrax.DirectAdjoint,
        "backsolve": diffrax.BacksolveAdjoint,
    }
    return kinds[_in_shard_map(adjoint)]()
