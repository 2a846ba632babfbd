"""The dtypes that a function computes in, and equal values where one is narrower than the state."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

# Two classes up to jax 0.11, one since then: the older name is an alias, or gone.
_PROGRAMS = (core.Jaxpr, getattr(core, "ClosedJaxpr", core.Jaxpr))


def programs_inside(params: Mapping[str, Any]) -> Iterator[core.Jaxpr]:
    """Yields the programs in the params of an equation of a jaxpr."""
    # Each primitive keeps them under names of its own, alone or in a tuple.
    for leaf in jax.tree.leaves(dict(params), is_leaf=lambda x: isinstance(x, _PROGRAMS)):
        if isinstance(leaf, _PROGRAMS):
            yield leaf


def computes_below(dtype: Any, function: Callable[..., Any], *args: Any) -> bool:
    """Returns whether a function, traced here, rounds anything to a floating dtype of fewer bits.

    Args:
      dtype: the floating dtype to compare with.
      function: any function of JAX.
      *args: its arguments.
    """
    least = jnp.finfo(dtype).bits

    def is_below(jaxpr: core.Jaxpr) -> bool:
        return any(
            any(_bits(variable.aval, least) < least for variable in equation.outvars)
            or any(map(is_below, programs_inside(equation.params)))
            for equation in jaxpr.eqns
        )

    return is_below(jax.make_jaxpr(function)(*args).jaxpr)


def _bits(aval: Any, otherwise: int) -> int:
    dtype = getattr(aval, "dtype", None)
    is_floating = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    return jnp.finfo(dtype).bits if is_floating else otherwise


def evaluated_alone(term: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a term whose value stays the same, bit for bit, where the term is differentiated.

    A pullback needs intermediate arrays, which changes what XLA fuses, and so where a value is
    rounded. A term that computes in a narrower dtype than its state is therefore evaluated once for
    its value, and again for its pullback; any other term is unchanged.

    Args:
      term: (t, y, params, *key) -> dy.
    """

    def alone(t: jax.Array, y: Any, params: Any, *key: jax.Array) -> Any:
        dtype = jnp.result_type(*jax.tree.leaves(y))
        is_narrow = computes_below(dtype, term, t, y, params, *key)
        return (jax.checkpoint(term) if is_narrow else term)(t, y, params, *key)

    return alone
