"""Our arrays, made of stored tensors one at a time, each born where it lies on the devices."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.linen.spmd import logical_to_mesh_sharding
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from odeformer.interop.checks import Shapes
from odeformer.interop.layout import LAYERS, Layout, Leaf
from odeformer.interop.mesh_checks import check_divided, check_rules
from odeformer.transformer.sharding import parameter_axes

# Names of axes and what of the mesh they are split over, as flax takes them.
Rules = Mapping[str, Any] | Sequence[tuple[str, Any]]


def shapes_of(layout: Layout, layers: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of our arrays, by path."""
    return {
        place: (layers, *leaf.shape) if place.startswith(LAYERS) else leaf.shape
        for place, leaf in layout.items()
    }


def shardings_of(
    shapes: Shapes, mesh: Mesh | None, rules: Rules | None
) -> dict[str, NamedSharding | None]:
    """Returns how each array lies on a mesh, by path; None for each without a mesh.

    Raises:
      ValueError: a mesh without rules or the other way round, rules that name an axis that the
        mesh lacks, or an axis of an array that the mesh does not divide.
    """
    check_rules(mesh, rules)
    if mesh is None or rules is None:
        return dict.fromkeys(shapes)

    pairs: Any = list(rules.items() if isinstance(rules, Mapping) else rules)
    flat = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    axes = parameter_axes(traverse_util.unflatten_dict(flat, sep="/"))
    shardings = logical_to_mesh_sharding(axes, mesh, pairs)
    found: Any = traverse_util.flatten_dict(shardings, sep="/")

    for path, sharding in found.items():
        check_divided(path, shapes[path], sharding)
    return found


def make_array(
    leaf: Leaf,
    layers: int | None,
    *,
    dtype: Any,
    sharding: NamedSharding | None,
    read: Callable[[str], np.ndarray],
) -> jax.Array:
    """Returns an array, made without more on the host than the tensors of one layer.

    Args:
      leaf: which tensors make it up.
      layers: how many layers it has as its leading axis; None: it belongs to none.
      dtype: its own.
      sharding: how it lies on the devices; None: on the default one.
      read: reads a tensor by its name.
    """

    def part(layer: int | None) -> np.ndarray:
        names = [name if layer is None else name.format(layer) for name in leaf.names]
        return leaf.ours([read(name) for name in names]).astype(dtype)

    if layers is None:
        return _put(part(None), sharding)

    # On the devices from the start: on the host the array of all layers would be there twice.
    whole = jnp.zeros((layers, *leaf.shape), dtype, device=sharding)
    write, place = _writer(sharding), _of_layer(sharding)
    for layer in range(layers):
        whole = write(whole, _put(part(layer), place), layer)

        # Else the host would read ahead, and hold what is not yet written.
        whole.block_until_ready()

    return whole


def _put(array: np.ndarray, sharding: NamedSharding | None) -> jax.Array:
    if sharding is None:
        return jnp.asarray(array)

    # Each process lays out what its own devices hold.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _of_layer(sharding: NamedSharding | None) -> NamedSharding | None:
    """How one layer lies of an array that has the layers as its leading axis."""
    if sharding is None:
        return None

    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))


@functools.lru_cache(maxsize=64)
def _writer(sharding: NamedSharding | None) -> Callable[..., jax.Array]:
    """A function that writes a layer into an array of all, in place."""
    options: Any = {} if sharding is None else {"out_shardings": sharding}
    write = functools.partial(jax.lax.dynamic_update_index_in_dim, axis=0)
    return jax.jit(write, donate_argnums=0, **options)
