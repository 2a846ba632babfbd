"""Fixed steps as a scan over single steps: diffrax's documented manual stepping."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from odeformer.ode import solvers
from odeformer.ode.ends import all_finite
from odeformer.ode.field import FAILED, SUCCESS, Solution, State
from odeformer.ode.problem import Problem
from odeformer.ode.steps import unrolled_step
from odeformer.ode.times import Times

# The name by which policies of `jax.checkpoint` know the state before each step.
STATE = "ode_state"


def scan_steps(problem: Problem, times: Times, indices: np.ndarray | None) -> Solution:
    """Takes equal steps, under adjoint 'checkpoint' or 'store'.

    Args:
      problem: with one of these adjoints.
      times: between the steps, [steps + 1].
      indices: of the times at which states are returned, int [n]; None if none are.
    """
    field, settings, steps = problem.field, problem.settings, times.shape[0] - 1
    step = _make_step(problem, steps)

    def body(y, xs):
        n, t0, t1 = xs

        # A single step's state is the solve's argument, which is kept anyway.
        y = checkpoint_name(y, STATE) if steps > 1 else y

        # One key per step, shared by its stages: within a step the field is one function.
        keys = () if problem.key is None else (jax.random.fold_in(problem.key, n),)
        y = step(y, t0, t1, problem.params, *keys)
        return y, None if indices is None else y

    grid = jnp.asarray(times)
    if steps == 1:
        y1, saved = body(problem.y0, (0, grid[0], grid[1]))
        saved = jax.tree.map(lambda y: y[None], saved)
    else:
        y1, saved = jax.lax.scan(body, problem.y0, (jnp.arange(steps), grid[:-1], grid[1:]))

    # Known before tracing, the result is a constant of the program.
    finite = all_finite(times)
    result = SUCCESS if finite is True else jnp.where(finite, SUCCESS, FAILED)
    return Solution(
        y1=y1,
        ys=None if indices is None else _at(problem.y0, saved, indices),
        nfe=jnp.asarray(steps * solvers.evaluations(settings.solver, len(field.terms))),
        accepted=jnp.int32(steps),
        rejected=jnp.int32(0),
        result=jnp.asarray(result, jnp.int32),
    )


def _make_step(problem: Problem, steps: int):
    """Returns (y0, t0, t1, params, *key) -> y1, recomputed in the backward pass if asked for."""
    field, settings = problem.field, problem.settings
    method, tableau = solvers.get(settings.solver), solvers.tableau(settings.solver)
    terms = solvers.ode_terms(settings.solver, field)

    # Stages are recomputed one at a time: a step's own recomputation would hold all of them, and
    # so twice the memory.
    recompute = settings.adjoint == "checkpoint"
    policy = getattr(jax.checkpoint_policies, settings.policy) if settings.policy else None
    slope = jax.checkpoint(field, policy=policy) if recompute else field

    def step(y, t0, t1, *args):
        if tableau is None:
            y1, *_ = method.step(
                terms, t0=t0, t1=t1, y0=y, args=args, solver_state=None, made_jump=False
            )
            return y1

        # diffrax's own step loops over stages: no forward mode, no strict shard_map.
        return unrolled_step(tableau, lambda stage, t, y: slope(t, y, *args), t0, t1, y)

    if not recompute:
        return step

    # In a scan's body XLA has no first computation that it could merge the second one with.
    return jax.checkpoint(step, policy=policy, prevent_cse=problem.prevent_cse and steps == 1)


def _at(y0: State, saved: Any, indices: np.ndarray) -> State:
    """The states at some of the times between the steps."""
    return jax.tree.map(lambda y0, ys: jnp.concatenate([y0[None], ys])[indices], y0, saved)
