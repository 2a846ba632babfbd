"""What is solved, and the result: vector fields and solutions."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

State = chex.ArrayTree
Params = Any  # any pytree
Term = Callable[..., State]

SUCCESS, MAX_STEPS_REACHED, FAILED = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class VectorField:
    """dy/dt = f_1(t, y, params) + f_2(t, y, params) + ...

    Attributes:
      terms: the f_j, each f_j(t, y, params) -> dy with dy of y's structure and shapes, of any
        floating dtype; called as f_j(t, y, params, key) where `integrate` is given a key.
        Parameters reach a term only through `params`: a term that closes over traced values leaks
        them.
      total: optional; the same function as the sum of the terms, computed at once. Solvers that
        split the field use the terms, all others the total.

    Raises:
      ValueError: no terms, or something other than a tuple of functions.
    """

    terms: tuple[Term, ...]
    total: Term | None = None

    def __post_init__(self):
        _check_terms(self.terms, self.total)

        # A frozen dataclass is hashed by its fields, and a list has no hash.
        object.__setattr__(self, "terms", tuple(self.terms))

    def __call__(self, t: jax.Array, y: State, params: Params, *key: jax.Array) -> State:
        """Evaluates the sum of the terms at time t (scalar) and state y."""
        if self.total is not None:
            return self.total(t, y, params, *key)

        first, *others = (term(t, y, params, *key) for term in self.terms)
        return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), first, *others)


class Solution(NamedTuple):
    """What `integrate` returns; a leading batch axis on all but the states with `per_sample`.

    Attributes:
      y1: the state at t1.
      ys: the states at the times ts, a leading axis of len(ts); None without ts.
      nfe: int32 [terms], evaluations of each term, rejected steps included.
      accepted: int32 [], accepted steps.
      rejected: int32 [], rejected steps.
      result: int32 [], 0 success, 1 ran out of max_steps, 2 any other failure.
    """

    y1: State
    ys: State | None
    nfe: jax.Array
    accepted: jax.Array
    rejected: jax.Array
    result: jax.Array


def in_state_dtype(field: VectorField) -> VectorField:
    """Returns the same field, each slope checked, and cast to the state's dtype.

    So the slopes of a field that computes in bfloat16 are added up in the state's dtype.
    """

    def cast(name: str, function: Term) -> Term:
        def term(t, y, params, *key):
            slope = function(t, y, params, *key)

            # Runs while the field is traced: the compiled program does not contain it.
            _check_slope(name, slope, y)
            return jax.tree.map(lambda dy, y: jnp.asarray(dy, y.dtype), slope, y)

        return term

    terms = tuple(cast(f"terms[{j}]", term) for j, term in enumerate(field.terms))
    return VectorField(terms, None if field.total is None else cast("total", field.total))


def _check_terms(terms: Any, total: Any) -> None:
    if not isinstance(terms, (tuple, list)):
        raise ValueError(
            "the terms of a VectorField are a tuple of functions (t, y, params) -> dy; "
            f"{terms!r} was given: put a single function in a tuple, terms=(f,)"
        )

    if not terms:
        raise ValueError("a VectorField has one term or more; terms=() was given")

    functions = {f"terms[{j}]": term for j, term in enumerate(terms)}
    if total is not None:
        functions["total"] = total
    for name, function in functions.items():
        if not callable(function):
            raise ValueError(
                f"{name} of a VectorField is a function (t, y, params) -> dy; {function!r} was "
                "given: give the function itself"
            )


def _check_slope(name: str, slope: State, y: State) -> None:
    def fits(dy, y) -> bool:
        floating = jnp.issubdtype(jnp.result_type(dy), jnp.floating)
        return floating and jnp.shape(dy) == jnp.shape(y)

    same = jax.tree.structure(slope) == jax.tree.structure(y)
    if not same or not all(jax.tree.leaves(jax.tree.map(fits, slope, y))):
        found, accepted = (jax.tree.map(lambda x: str(jax.typeof(x)), tree) for tree in (slope, y))
        raise ValueError(
            f"{name} of the vector field returned {found} for the state {accepted}: a term returns "
            "dy/dt with the state's structure and shapes, in a floating dtype"
        )
