"""The counts of a model's solves: nfe, accepted, rejected, result; of one stack or of several.

And the sums along its flow, where they were asked for, and the gap of a reversible pair.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from odeformer.ode.problem import Solution, State
from odeformer.transformer.checks import check_stacks

_COUNTS = ("nfe", "accepted", "rejected", "result")


def sow_counts(
    module: nn.Module, *solutions: Solution, terms: Sequence[tuple[str, ...]] = ()
) -> None:
    """Records the counts of a model's stacks in its collection 'ode', where that is mutable.

    A reversible pair's gap [B] is among them, of several pairs the widest.

    Those of several stacks are joined along the groups, in order. Their nfe is int32 [G, terms]:
    G is the sum of the stacks' groups, the terms are the union of theirs in the order in which they
    first occur, and where a stack lacks a term there is 0. Sums along the flow are recorded under
    their names, [G, B]; where a stack has none there is 0.

    Args:
      module: the model; nothing is recorded while it is being initialised.
      *solutions: of its stacks, from the first to the last.
      terms: the names of each stack's terms, `stack.field.terms`; needed for several stacks.

    Raises:
      ValueError: several stacks, and not as many tuples of terms.
    """
    if module.is_initializing():
        return

    check_stacks(len(solutions), terms)
    joined = solutions[0] if len(solutions) == 1 else _join(solutions, terms)
    recorded: dict[str, Any] = {name: getattr(joined, name) for name in _COUNTS}
    recorded |= joined.sums or {}

    # Of the stacks that are solved by a reversible pair, each sample's widest gap.
    gaps: Any = [solution.gap for solution in solutions if solution.gap is not None]
    if gaps:
        recorded["gap"] = jnp.stack(gaps).max(axis=0)

    for name, value in recorded.items():
        # The default of `sow` would append to a tuple.
        module.sow("ode", name, value, reduce_fn=lambda _, new: new)


def unsolved(groups: int, state: State, terms: int) -> Solution:
    """Returns a solution of a stack's shapes, whose values nobody reads.

    Args:
      groups: G, of the stack.
      state: of its end.
      terms: number of its terms.
    """
    zeros = jnp.zeros(groups, jnp.int32)
    return Solution(
        y1=state,
        ys=None,
        nfe=jnp.zeros((groups, terms), jnp.int32),
        accepted=zeros,
        rejected=zeros,
        result=zeros,
    )


def _join(solutions: Sequence[Solution], terms: Sequence[tuple[str, ...]]) -> Solution:
    names = list(dict.fromkeys(name for each in terms for name in each))
    nfe = [
        jnp.stack(
            [
                solution.nfe[..., each.index(name)]
                if name in each
                else jnp.zeros_like(solution.accepted)
                for name in names
            ],
            axis=-1,
        )
        for solution, each in zip(solutions, terms, strict=True)
    ]

    # A stack may be solved per sample, [G, B], where another is not: [G] is that of each sample.
    batch = max((s.accepted.shape[1:] for s in solutions), key=len)

    def along_groups(counts: Any) -> jax.Array:
        return jnp.concatenate(
            [_of_batch(x, s, batch) for x, s in zip(counts, solutions, strict=True)]
        )

    others = {
        name: along_groups([getattr(s, name) for s in solutions])
        for name in ("accepted", "rejected", "result")
    }
    sums = _join_sums(solutions)
    return solutions[-1]._replace(nfe=along_groups(nfe), **others, sums=sums)


def _join_sums(solutions: Sequence[Solution]) -> dict[str, jax.Array] | None:
    """The sums of several stacks along their groups, [G, B] each; None if no stack has any."""
    found = {name: x for s in solutions for name, x in (s.sums or {}).items()}

    def of_stack(solution: Solution, name: str) -> jax.Array:
        zeros = jnp.zeros((len(solution.accepted), found[name].shape[1]), found[name].dtype)
        return (solution.sums or {}).get(name, zeros)

    joined = {name: jnp.concatenate([of_stack(s, name) for s in solutions]) for name in found}
    return joined or None


def _of_batch(x: jax.Array, solution: Solution, batch: tuple[int, ...]) -> jax.Array:
    """A count [G, ...] of a solve, with an axis [B] after the groups where another one has it."""
    if solution.accepted.shape[1:] == batch:
        return x

    return jnp.broadcast_to(x[:, None], (x.shape[0], *batch, *x.shape[1:]))
