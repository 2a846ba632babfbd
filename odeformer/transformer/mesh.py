"""The mesh that is active: where axes of a name lie on it, and an activation laid out over it.

Arrays carry their axes in their names: B batch.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen import get_logical_axis_rules, logical_axis_rules
from flax.linen.spmd import logical_to_mesh_axes
from jax.sharding import PartitionSpec


def constrain(x: jax.Array, names: Iterable[str | None]) -> jax.Array:
    """Returns x, laid out over the mesh as the rules say for axes of these names.

    Args:
      x: an activation.
      names: one for each of its axes; None for an axis that is not split.
    """
    # Inside shard_map the caller decides where things are, and a constraint would be an error.
    if _manual() or not _rules():
        return x

    # Names of None only are a constraint too: x is then replicated.
    return jax.lax.with_sharding_constraint(x, mesh_axes(names))


def batch_axes() -> tuple[str, ...]:
    """Returns the mesh axes over which the compiler splits a batch; none without a mesh."""
    sizes, manual = jax.sharding.get_abstract_mesh().shape, _manual()
    return tuple(axis for axis in _of("batch") if axis not in manual and sizes[axis] > 1)


def sample_numbers(batch: int) -> jax.Array:
    """Returns the number of each sample in the whole batch, int32 [B].

    Args:
      batch: B, the number of samples, inside `shard_map` of the shard's.
    """
    numbers = jnp.arange(batch, dtype=jnp.int32)
    split = [axis for axis in _of("batch") if axis in _manual()]
    if not split:
        return numbers

    # Inside shard_map a shard's samples follow those of the shards before it.
    return numbers + batch * jax.lax.axis_index(tuple(split))


def without_batch() -> Any:
    """Returns a context in which activations are those of one shard: 'batch' has no mesh axis."""
    return logical_axis_rules([rule for rule in get_logical_axis_rules() if rule[0] != "batch"])


def mesh_axes(names: Iterable[str | None]) -> PartitionSpec:
    """Returns the mesh axes of named ones; none inside `shard_map`, where the caller has them."""
    return logical_to_mesh_axes(tuple(names), [] if _manual() else _rules()) or PartitionSpec()


def _of(name: str) -> tuple[str, ...]:
    """The mesh axes of one name."""
    axes = dict(_rules()).get(name) or ()
    return (axes,) if isinstance(axes, str) else tuple(axes)


def _rules() -> Any:
    """The active rules; none without a mesh, or on one of a single device."""
    return get_logical_axis_rules() if jax.sharding.get_abstract_mesh().size > 1 else ()


def _manual() -> frozenset[str]:
    return frozenset(jax.sharding.get_abstract_mesh().manual_axes)
