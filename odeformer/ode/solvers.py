"""Solvers: each turns one vector field into one architecture.

diffrax supplies the Runge-Kutta methods. This module adds those it lacks (the two splittings, the
classical RK4 and the 3/8 rule), and the table of names.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from odeformer.checks import Names, check_new_name
from odeformer.errors import check_name
from odeformer.ode.solver_checks import check_explicit

# The type that diffrax's solvers declare.
Tableau = diffrax.ButcherTableau | diffrax.MultiButcherTableau

# What `integrate` and a depth accept: a name of this module's table, or a solver that is explicit.
Solver = str | diffrax.AbstractSolver


class Substep(NamedTuple):
    """An Euler step of one term, as a part of a splitting step of length h.

    Attributes:
      term: index into the vector field's terms.
      begin: its start, as a fraction of h.
      length: its length, as a fraction of h.
    """

    term: int
    begin: float
    length: float


class Splitting(diffrax.AbstractSolver):
    """A composition of Euler steps of single terms; of a single one it is Euler's method.

    Of first order, whatever the composition's own order: the sub-steps are Euler's.
    """

    term_structure: ClassVar = diffrax.MultiTerm
    interpolation_cls: ClassVar = diffrax.LocalLinearInterpolation

    @abc.abstractmethod
    def substeps(self, terms: int) -> tuple[Substep, ...]:
        """Returns the sub-steps of one step, in order, for a field of that many terms."""

    def order(self, terms):
        return 1

    def init(self, terms, t0, t1, y0, args):
        return None

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        y = y0
        for term, begin, length in self.substeps(len(terms.terms)):
            start = t0 + begin * (t1 - t0)
            control = terms.terms[term].contr(start, start + length * (t1 - t0))
            increment = terms.terms[term].vf_prod(start, y, args, control)
            y = jax.tree.map(jnp.add, y, increment)

        # No error estimate, and no state from step to step.
        return y, None, dict(y0=y0, y1=y), None, diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)


class LieTrotter(Splitting):
    """y += h f_1(y), then y += h f_2(y), ...: with h = 1 the pre-LN transformer layer.

    Order 1. Source: Trotter, 'On the product of semi-groups of operators', 1959.
    """

    def substeps(self, terms):
        return tuple(Substep(term, 0.0, 1.0) for term in range(terms))


class Strang(Splitting):
    """Half of f_2, the whole of f_1, half of f_2: with h = 1 the Macaron layer.

    With more terms: half steps of the last to the second, the first, and back; with one: Euler. The
    outer terms are evaluated twice. Order 1: Strang's second order would need sub-steps of second
    order.
    Sources: Strang, 'On the construction and comparison of difference schemes', 1968; Lu et al.,
    'Understanding and improving transformer from a multi-particle dynamic system point of view',
    arXiv 1906.02762.
    """

    def substeps(self, terms):
        outer = range(1, terms)
        return (
            *(Substep(term, 0.0, 0.5) for term in reversed(outer)),
            Substep(0, 0.0, 1.0),
            *(Substep(term, 0.5, 0.5) for term in outer),
        )


class RK4(diffrax.AbstractERK):
    """The classical Runge-Kutta method: order 4, 4 stages, no error estimate.

    Source: Kutta, 'Beitrag zur naeherungsweisen Integration totaler Differentialgleichungen', 1901.
    """

    tableau: ClassVar[Tableau] = diffrax.ButcherTableau(
        c=np.array([1 / 2, 1 / 2, 1.0]),
        a_lower=(np.array([1 / 2]), np.array([0.0, 1 / 2]), np.array([0.0, 0.0, 1.0])),
        b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        b_error=np.zeros(4),
    )
    interpolation_cls: ClassVar = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms):
        return 4


class RK38(diffrax.AbstractERK):
    """The 3/8 rule: order 4, 4 stages, no error estimate. Source: Kutta, 1901."""

    tableau: ClassVar[Tableau] = diffrax.ButcherTableau(
        c=np.array([1 / 3, 2 / 3, 1.0]),
        a_lower=(np.array([1 / 3]), np.array([-1 / 3, 1.0]), np.array([1.0, -1.0, 1.0])),
        b_sol=np.array([1 / 8, 3 / 8, 3 / 8, 1 / 8]),
        b_error=np.zeros(4),
    )
    interpolation_cls: ClassVar = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms):
        return 4


_SOLVERS: dict[str, diffrax.AbstractSolver] = {
    "lie_trotter": LieTrotter(),
    "strang": Strang(),
    "euler": diffrax.Euler(),
    "midpoint": diffrax.Midpoint(),
    "heun": diffrax.Heun(),
    "ralston": diffrax.Ralston(),
    "rk4": RK4(),
    "rk38": RK38(),
    "bosh3": diffrax.Bosh3(),
    "tsit5": diffrax.Tsit5(),
    "dopri5": diffrax.Dopri5(),
    "dopri8": diffrax.Dopri8(),
}
NAMES = Names(_SOLVERS)


def register(name: str, solver: Any = None) -> Any:
    """Registers a solver of your own, under its name everywhere.

        @odeformer.solvers.register("ssprk3")
        class SSPRK3(diffrax.AbstractERK): ...

    Args:
      name: a word.
      solver: an explicit Runge-Kutta method (a `diffrax.AbstractERK` with its tableau), a
        `Splitting`, or a class of either that is made without arguments. None: returns a decorator
        of such a class.

    Returns:
      What was given, or a decorator.

    Raises:
      ValueError: a name that is taken, or is none; a solver of another kind.
    """
    check_new_name("solver", name, NAMES)
    if solver is None:
        return lambda solver: register(name, solver)

    made = solver() if isinstance(solver, type) else solver
    check_explicit(made, Splitting, NAMES)
    _SOLVERS[name] = made
    return solver


def get(solver: Solver) -> diffrax.AbstractSolver:
    """Returns the diffrax solver of that name; a solver itself is returned as it is.

    Raises:
      ValueError: no solver has the name, the message lists the names and the nearest one; or a
        solver that is not explicit.
    """
    if isinstance(solver, diffrax.AbstractSolver):
        check_explicit(solver, Splitting, NAMES)
        return solver

    check_name("solver", solver, NAMES)
    return _SOLVERS[solver]


def name_of(solver: Solver) -> str:
    """Returns what messages call a solver: its name, or its class's."""
    return solver if isinstance(solver, str) else type(solver).__name__


def order(solver: Solver) -> int:
    """Returns the solver's order of convergence p: its global error is O(h^p).

    Raises:
      ValueError: as `get` (so do the functions below).
    """
    # A solver of diffrax may ask its terms; none that is explicit does.
    return get(solver).order(None)  # pyright: ignore[reportReturnType]


def is_splitting(solver: Solver) -> bool:
    """Whether the solver steps through the terms one after another, not through their sum."""
    return isinstance(get(solver), Splitting)


def tableau(solver: Solver) -> diffrax.ButcherTableau | None:
    """Returns a Runge-Kutta solver's Butcher tableau; None for Euler and the splittings."""
    return getattr(get(solver), "tableau", None)


def is_adaptive(solver: Solver) -> bool:
    """Whether the solver estimates its error, as adaptive steps need."""
    # RK4 and the 3/8 rule have a row of zeros in its place.
    table = tableau(solver)
    return table is not None and bool(np.any(table.b_error))


def stages(tableau: diffrax.ButcherTableau, error: bool = False) -> int:
    """Returns how many stages a fixed step evaluates: those that its solution reads.

    Args:
      tableau: of the method.
      error: whether the error is estimated too, which may read one more.
    """
    # FSAL solvers weigh their last stage with zero; it is the first slope of the next step.
    read = (tableau.b_sol != 0) | (tableau.b_error != 0) if error else tableau.b_sol
    return int(np.flatnonzero(read)[-1]) + 1


def evaluations(solver: Solver, terms: int, error: bool = False) -> np.ndarray:
    """Returns how often one fixed step evaluates each of that many terms, int32 [terms].

    Args:
      solver: its name, or itself.
      terms: number of terms.
      error: whether the error is estimated too.
    """
    method, table = get(solver), tableau(solver)
    if not isinstance(method, Splitting):
        return np.full(terms, 1 if table is None else stages(table, error), np.int32)

    evaluated = [substep.term for substep in method.substeps(terms)]
    return np.bincount(evaluated, minlength=terms).astype(np.int32)


def ode_terms(solver: Solver, field: Any) -> diffrax.AbstractTerm:
    """Returns a vector field as diffrax's term for a solver.

    Args:
      solver: its name, or itself.
      field: a `VectorField`.

    Returns:
      A `diffrax.MultiTerm` for a splitting, an `ODETerm` of the sum for the others; each takes
      args = (params, *key).
    """

    def ode_term(function: Callable[..., Any]) -> diffrax.ODETerm:
        return diffrax.ODETerm(lambda t, y, args: function(t, y, *args))

    if is_splitting(solver):
        return diffrax.MultiTerm(*(ode_term(term) for term in field.terms))
    return ode_term(field)
