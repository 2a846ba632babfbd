"""Any one-step method made reversible: a pair of states, whose steps can be undone exactly.

    y_1 = lambda y_0 + (1 - lambda) z_0 + Psi_h(t_0, z_0),    z_1 = z_0 - Psi_-h(t_1, y_1)

Psi_h(t, y) is the increment of a step of length h of any solver; z begins as y, and the solution is
y. Run backwards, in the same numbers but for rounding:

    z_0 = z_1 + Psi_-h(t_1, y_1),    y_0 = (y_1 - (1 - lambda) z_0 - Psi_h(t_0, z_0)) / lambda

So the gradient needs no stored states: the backward pass recovers them, and evaluates each Psi once
for both the state and its pullback; in bfloat16 twice. Each step back divides rounding errors by
lambda.

The pair is a solver of its own, with the same order and twice the evaluations. Along a direction in
which the flow contracts, dy/dt = a y with a < -(1 - lambda) / h, it is unstable under every solver:
y - z starts at the solver's local error and grows like exp(|a| t).

Source: McCallum, Foster, 'Efficient, accurate and stable gradients for neural ODEs', 2024,
arXiv 2410.11648.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from odeformer.ode import problem_checks, solvers
from odeformer.ode.derivatives import reverse_mode_only
from odeformer.ode.precision import evaluated_alone
from odeformer.ode.problem import (
    REVERSIBLE,
    Problem,
    Solution,
    SolveSettings,
    State,
    Times,
    VectorField,
)
from odeformer.ode.scans import Pair, floating, merged, reversible_scan, scan_steps
from odeformer.ode.steps import STATE, advance, count_fixed_steps, unrolled_slopes
from odeformer.ode.times import states_at

# (half, t0, t1, y) -> the increment from t0 to t1. half is 0 for the step from z and 1 for the step
# back from y: a cache tells them apart, a field does not.
Increment = Callable[[int, jax.Array, jax.Array, State], State]


def begin(y0: State) -> Pair:
    """Returns the pair that starts at a state."""
    zeros = jax.tree.map(jnp.zeros_like, y0)
    return Pair(y0, y0, (zeros, zeros))


def step(coupling: float, increment: Increment, pair: Pair, t0: Any, t1: Any) -> Pair:
    """Takes a step of the pair from t0 to t1."""
    (y_low, z_low), z0 = pair.low, pair.z
    apart = _distance(z0, z_low, pair.y, y_low)
    y1, y_low = _add(pair.y, y_low, increment(0, t0, t1, z0))

    # lambda y + (1 - lambda) z = y + (1 - lambda) (z - y), which rounds off less.
    y1, y_low = _add(y1, y_low, jax.tree.map(lambda d: (1 - coupling) * d, apart))

    back = increment(1, t1, t0, y1)
    z1, z_low = _add(z0, z_low, jax.tree.map(jnp.negative, back))
    return Pair(y1, z1, (y_low, z_low))


def undo(coupling: float, increment: Increment, pair: Pair, t0: Any, t1: Any) -> Pair:
    """Recovers the pair before a step from t0 to t1 from the one after it."""
    z0, z_low = _add(pair.z, pair.low[1], increment(1, t1, t0, pair.y))
    return _recover(coupling, pair, z0, z_low, increment(0, t0, t1, z0))


def _recover(coupling: float, pair: Pair, z0: State, z_low: State, moved: State) -> Pair:
    """The pair before a step, from the one after it, z before it, and the increment of z."""
    y, low = _add(pair.y, pair.low[0], jax.tree.map(jnp.negative, moved))

    # y = lambda y_0 + (1 - lambda) z_0, so that y_0 - y = (1 - lambda) / lambda (y - z_0).
    rate, apart = (1 - coupling) / coupling, _distance(y, low, z0, z_low)
    y0, y_low = _add(y, low, jax.tree.map(lambda d: rate * d, apart))
    return Pair(y0, z0, (y_low, z_low))


def _add(x: State, low: State, more: State) -> tuple[State, State]:
    """x + more, rounded, and what is rounded off; `low` is what was rounded off x.

    Source: Knuth, 'The Art of Computer Programming', volume 2, 4.2.2, theorem B.
    """

    def leaf(x, low, more):
        total = x + more
        rest = total - x
        lost = (x - (total - rest)) + (more - rest) + low

        # The lower parts have no gradient: the upper part has all of the exact sum's.
        lost = jax.lax.stop_gradient(lost)
        high = total + lost
        return high, jax.lax.stop_gradient(lost - (high - total))

    return _unzip(jax.tree.map(leaf, x, low, more), x)


def _distance(x: State, x_low: State, y: State, y_low: State) -> State:
    return jax.tree.map(lambda x, a, y, b: (x - y) + (a - b), x, x_low, y, y_low)


def _unzip(pairs: Any, like: State) -> tuple[State, State]:
    first, second = jax.tree.transpose(jax.tree.structure(like), jax.tree.structure((0, 0)), pairs)
    return first, second


def staged_increment(
    solver: solvers.Solver,
    terms: int,
    evaluate: Callable[[int | None, int, jax.Array, State], State],
    t0: jax.Array,
    t1: jax.Array,
    y0: State,
) -> State:
    """Returns the increment of a step of any solver; the arguments are those of `staged_step`."""
    method, table = solvers.get(solver), solvers.tableau(solver)
    if table is not None:
        h, slopes = unrolled_slopes(table, lambda n, t, y: evaluate(None, n, t, y), t0, t1, y0)
        return advance(None, h, table.b_sol, slopes)

    if not isinstance(method, solvers.Splitting):
        return jax.tree.map(lambda dy: (t1 - t0) * dy, evaluate(None, 0, t0, y0))

    # The increments of sub-steps are added up without y0: next to it they would lose digits.
    total: Any = None
    y, counts = y0, [0] * terms
    for term, begin, length in method.substeps(terms):
        slope = evaluate(term, counts[term], t0 + begin * (t1 - t0), y)
        h, counts[term] = length * (t1 - t0), counts[term] + 1

        increment = jax.tree.map(lambda dy, h=h: h * dy, slope)
        total = increment if total is None else jax.tree.map(jnp.add, total, increment)
        y = jax.tree.map(jnp.add, y0, total)

    return total


class Steps(NamedTuple):
    """A pair's steps, as functions for the scans of `odeformer.ode.scans`.

    x is (n, t0, t1), the number of a step and its ends; `shared` is (params, key).

    Attributes:
      forth: (pair, x, shared) -> the pair after a step.
      back: (pair, x, shared) -> the pair before a step.
      pull: (pair, cotangent, x, shared) -> the pair before a step, and the cotangents of that pair,
        of x and of shared; None where there is no cotangent, as for a key.
    """

    forth: Callable[..., Pair]
    back: Callable[..., Pair]
    pull: Callable[..., tuple[Pair, Pair, Any, Any]]


def make_steps(field: VectorField, settings: SolveSettings, scanned: bool) -> Steps:
    """Returns the steps of a pair.

    Args:
      field: as `in_state_dtype` returns it.
      settings: how it is solved; `reversible` is set.
      scanned: whether there are several steps, between which 'checkpoint' stores the states.
    """
    coupling: Any = settings.reversible
    recompute = settings.adjoint == "checkpoint"
    policy = getattr(jax.checkpoint_policies, settings.policy) if settings.policy else None

    # As in a plain step, 'checkpoint' recomputes stages one at a time. 'reversible' evaluates an
    # increment once, unless its value would then differ from that of the step forth.
    slopes: list[Any] = [field, *field.terms]
    if recompute:
        slopes = [jax.checkpoint(f, policy=policy) for f in slopes]
    elif settings.adjoint == REVERSIBLE:
        slopes = [evaluated_alone(f) for f in slopes]

    def increments(n, params, key) -> Increment:
        # One key per step, shared by both halves and all stages.
        keys = () if key is None else (jax.random.fold_in(key, n),)

        def evaluate(term: int | None, _: int, t: jax.Array, y: State) -> State:
            return slopes[0 if term is None else term + 1](t, y, params, *keys)

        def increment(half, t0, t1, y):
            terms = len(field.terms)
            return staged_increment(settings.solver, terms, evaluate, t0=t0, t1=t1, y0=y)

        return increment

    def forth(pair, x, shared):
        n, t0, t1 = x
        pair = checkpoint_name(pair, STATE) if scanned else pair
        return step(coupling, increments(n, *shared), pair, t0, t1)

    def back(pair, x, shared):
        n, t0, t1 = x
        return undo(coupling, increments(n, *shared), pair, t0, t1)

    def pull(pair, cotangent, x, shared):
        (n, t0, t1), (params, key) = x, shared

        def increment(half):
            return lambda floats, *args: increments(n, merged(floats, params), key)(half, *args)

        floats = floating(params)
        psi, pull_back = jax.vjp(increment(1), floats, t1, t0, pair.y)
        z0, z_low = _add(pair.z, pair.low[1], psi)
        g_params, g_t1, g_t0, g_y = pull_back(jax.tree.map(jnp.negative, cotangent.z))
        g_y = jax.tree.map(jnp.add, cotangent.y, g_y)

        psi, pull_back = jax.vjp(increment(0), floats, t0, t1, z0)
        before = _recover(coupling, pair, z0, z_low, psi)
        more, more_t0, more_t1, g_z = pull_back(g_y)
        g_z = jax.tree.map(lambda a, b, c: a + (1 - coupling) * b + c, cotangent.z, g_y, g_z)

        g_pair = Pair(jax.tree.map(lambda g: coupling * g, g_y), g_z)
        g_x = (None, g_t0 + more_t0, g_t1 + more_t1)
        return before, g_pair, g_x, (jax.tree.map(jnp.add, g_params, more), None)

    if recompute:
        forth = jax.checkpoint(forth, policy=policy, prevent_cse=not scanned)
    return Steps(forth, back, pull)


def step_inputs(times: Times) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the numbers, starts and ends of the steps between these times, [steps] each."""
    grid = jnp.asarray(times)
    return jnp.arange(len(grid) - 1), grid[:-1], grid[1:]


_REVERSE_MODE_ONLY = (
    "adjoint 'reversible' has first derivatives in reverse mode alone (jax.grad, jax.vjp), and "
    "forward mode or second derivatives were asked for (jax.jvp, jax.jacfwd, jax.hessian, "
    "Hessian-vector products): take adjoint 'checkpoint' or 'store', which differentiate the same "
    "pair"
)


def run_reversibly(scan: Callable, *args: Any) -> tuple[Pair, Any]:
    """Calls a `reversible_scan` on (pair, xs, shared), and refuses derivatives that it lacks.

    Raises:
      ValueError: forward mode or second derivatives, when they are taken.
    """
    try:
        return scan(*reverse_mode_only(args, _REVERSE_MODE_ONLY))
    except TypeError as error:
        # JAX's own words for forward mode do not say what to do.
        if "forward-mode" not in str(error):
            raise
        raise ValueError(_REVERSE_MODE_ONLY) from error


def scan_pairs(problem: Problem, times: Times, indices: np.ndarray | None) -> Solution:
    """Takes equal steps of a reversible pair.

    Args:
      problem: what is solved; `reversible` is set.
      times: between the steps, [steps + 1].
      indices: of the times at which states are returned, int [n]; None if none are.
    """
    settings, steps, y0 = problem.settings, times.shape[0] - 1, problem.y0
    problem_checks.check_recoverable(settings.reversible, steps, times.dtype)
    forth, _, pull = make_steps(problem.field, settings, scanned=steps > 1)

    def keep(pair: Pair) -> State | None:
        return None if indices is None else pair.y

    shared, xs = (problem.params, problem.key), step_inputs(times)
    if settings.adjoint == REVERSIBLE:
        scan = reversible_scan(forth, pull, keep)
        pair, saved = run_reversibly(scan, begin(y0), xs, shared)
    else:
        pair, saved = scan_steps(forth, begin(y0), xs, shared, keep)

    counts = count_fixed_steps(settings, len(problem.field.terms), times)
    gap = jax.vmap(relative_gap) if settings.per_sample else relative_gap
    return counts._replace(
        y1=pair.y, ys=states_at(problem.y0, saved, indices), gap=gap(pair.y, pair.z)
    )


def relative_gap(y: State, z: State) -> jax.Array:
    """Returns |y - z| / |y| over all entries, without a gradient; 0 where both are 0."""
    y, z = jax.lax.stop_gradient((y, z))
    size, gap = _norm(y), _norm(jax.tree.map(jnp.subtract, y, z))
    return gap / jnp.where(gap == 0, 1, size)


def _norm(state: State) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(y)) for y in jax.tree.leaves(state)))
