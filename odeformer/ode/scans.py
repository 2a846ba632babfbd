"""Scans over steps that can be undone: forwards, backwards, and the gradient on the way back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Pair(NamedTuple):
    """The two states of a reversible pair; or the cotangents of both.

    Attributes:
      y: the solution, a pytree of arrays.
      z: the other state.
      low: what was rounded off y, and what was rounded off z; None for cotangents.
    """

    y: Any
    z: Any
    low: Any = None


def floating(tree: Any) -> Any:
    """Returns the tree with None for every leaf that has no gradient."""

    def leaf(x: Any) -> Any:
        return x if jnp.issubdtype(jnp.result_type(x), jnp.inexact) else None

    return jax.tree.map(leaf, tree)


def merged(floats: Any, tree: Any) -> Any:
    """Returns `tree` with the leaves of `floats`, as `floating` returns them, in their places."""
    return jax.tree.map(
        lambda new, old: old if new is None else new, floats, tree, is_leaf=lambda x: x is None
    )


def scan_steps(step: Callable, pair: Pair, xs: Any, shared: Any, keep: Callable) -> Any:
    """Takes steps: `step` is a function (pair, x, shared) -> pair.

    Args:
      step: one step of the scan, which may be several steps of a solver.
      pair: the pair before the first step.
      xs: what differs from step to step, along a leading axis.
      shared: what is the same in all steps.
      keep: (pair) -> what to keep of the pair after each step, or None.

    Returns:
      The pair after the last step, and what was kept, along a leading axis.
    """

    def body(pair, x):
        pair = step(pair, x, shared)
        return pair, keep(pair)

    if _length(xs) > 1:
        return jax.lax.scan(body, pair, xs)

    # A single step needs no loop.
    pair, kept = body(pair, jax.tree.map(lambda x: x[0], xs))
    return pair, jax.tree.map(lambda x: x[None], kept)


def scan_back(back: Callable, pair: Pair, xs: Any, shared: Any) -> Pair:
    """Undoes the steps of `scan_steps` by a function (pair, x, shared) -> pair."""
    return jax.lax.scan(lambda pair, x: (back(pair, x, shared), None), pair, xs, reverse=True)[0]


def scan_pull(
    pull: Callable,
    pair: Pair,
    cotangents: tuple[Pair, Any],
    xs: Any,
    shared: Any,
    keep: Callable,
) -> tuple[Pair, Pair, Any, Any]:
    """Differentiates `scan_steps` backwards from the pair after its last step.

    Args:
      pull: (pair, cotangent, x, shared) -> the pair before a step, and the cotangents of that pair,
        of x and of shared; None where there is no cotangent, as for a key.
      pair: the pair after the last step.
      cotangents: of that pair, and of what was kept.
      xs: as for `scan_steps`.
      shared: as for `scan_steps`.
      keep: as for `scan_steps`.

    Returns:
      The pair before the first step, and the cotangents of that pair, of xs and of shared.
    """

    def body(carry, inputs):
        pair, g_pair, total = carry
        x, g_kept = inputs

        if g_kept is not None:
            (more,) = jax.vjp(keep, pair)[1](g_kept)
            g_pair = jax.tree.map(jnp.add, g_pair, more._replace(low=None))

        pair, g_pair, g_x, g_shared = pull(pair, g_pair, x, shared)
        total = g_shared if total is None else jax.tree.map(jnp.add, total, g_shared)
        return (pair, g_pair, total), g_x

    g_pair, g_kept = cotangents[0]._replace(low=None), cotangents[1]
    if _length(xs) > 1:
        carry = (pair, g_pair, jax.tree.map(jnp.zeros_like, floating(shared)))
        (pair, g_pair, total), g_xs = jax.lax.scan(body, carry, (xs, g_kept), reverse=True)
        return pair, g_pair, g_xs, total

    first = jax.tree.map(lambda x: x[0], (xs, g_kept))
    (pair, g_pair, total), g_x = body((pair, g_pair, None), first)
    return pair, g_pair, jax.tree.map(lambda x: x[None], g_x), total


def reversible_scan(step: Callable, pull: Callable, keep: Callable) -> Callable:
    """Returns `scan_steps` as a function (pair, xs, shared), whose gradient is `scan_pull`.

    Only the last pair is stored. The arguments are those of the two functions.
    """

    @jax.custom_vjp
    def run(pair, xs, shared):
        return scan_steps(step, pair, xs, shared, keep)

    def forwards(pair, xs, shared):
        pair, kept = scan_steps(step, pair, xs, shared, keep)
        return (pair, kept), (pair, xs, shared)

    def backwards(stored, cotangents):
        return scan_pull(pull, stored[0], cotangents, *stored[1:], keep=keep)[1:]

    run.defvjp(forwards, backwards)
    return run


def _length(xs: Any) -> int:
    return jax.tree.leaves(xs)[0].shape[0]
