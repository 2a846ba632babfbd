"""The device mesh, and how the state and the batches are laid out on it.

The batch is split over the axes 'data' and 'fsdp', the state over 'fsdp' and 'tensor'.
"""

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.linen import logical_axis_rules
from flax.linen.spmd import logical_to_mesh_sharding
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from odeformer import ModelConfig, example_inputs, make_model, sharding
from train.config.run import MeshConfig
from train.devices.checks import check_sizes, check_slices

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# The library's names of axes -> the mesh's. The first rule wins: of a state [batch, tokens, width]
# the batch is split over fsdp, and the width only of a parameter.
RULES: dict[str, tuple[str, ...]] = {
    "batch": BATCH_AXES,
    "vocabulary": ("tensor",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "width": ("fsdp",),
}


def device_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of a config.

    Args:
      config: the sizes of its axes.
      devices: by default all of them, of all processes.

    Raises:
      BadInput: sizes that do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = _complete_shape(config, len(devices))

    # Auto, so that the compiler places the communication: under the Explicit axes that
    # `jax.make_mesh` makes by default diffrax fails.
    return Mesh(_arrange(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def one_device_mesh() -> Mesh:
    """Returns the mesh of one of this process's devices."""
    return device_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.local_devices()[:1])


def _complete_shape(config: MeshConfig, count: int) -> tuple[int, ...]:
    """The sizes of the axes, the open one such that all devices are used."""
    sizes = [getattr(config, axis) for axis in AXES]
    check_sizes(dict(zip(AXES, sizes, strict=True)), count)

    fixed = math.prod(size for size in sizes if size != -1)
    return tuple(count // fixed if size == -1 else size for size in sizes)


def _arrange(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """The devices, so that neighbours on the mesh are close; slices are joined along 'data'."""
    # Of TPUs alone: among GPUs jax gives each host a slice_index of its own.
    is_tpu = devices[0].platform == "tpu"
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if is_tpu else 1
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)

    data, *inner = shape
    check_slices(data, slices)

    # The network between slices is slow: only the sum of the gradients over 'data' crosses it.
    within, across = (data // slices, *inner), (slices, *(1 for _ in inner))
    return mesh_utils.create_hybrid_device_mesh(
        within, across, devices, allow_split_physical_axes=True
    )


@contextlib.contextmanager
def on_mesh(mesh: Mesh, model: ModelConfig) -> Iterator[None]:
    """A context in which the library's sharding constraints act: for calls of a jitted step."""
    # The step's shardings name the devices, and here only the mesh's shape is active: under a mesh
    # of devices JAX would run on all of them what diffrax computes while it is traced.
    shape = jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
    with shape, logical_axis_rules(axis_rules(mesh, model)):
        yield


def parameter_shardings(mesh: Mesh, model: ModelConfig, params: Any) -> Any:
    """Returns the shardings of a model's parameters on a mesh, a tree of their structure.

    Args:
      model: the model's config.
      params: the parameters, or their shapes.
    """
    return logical_to_mesh_sharding(sharding.parameter_axes(params), mesh, axis_rules(mesh, model))


def parameter_shapes(config: ModelConfig) -> Any:
    """Returns the shapes and dtypes of a model's parameters, without allocating them."""
    key = jax.eval_shape(jax.random.key, 0)
    return jax.eval_shape(make_model(config).init, key, *example_inputs(config))["params"]


def abstract_parameters(config: ModelConfig, mesh: Mesh) -> Any:
    """Returns the shapes, dtypes and shardings of a model's parameters on a mesh."""
    shapes = parameter_shapes(config)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        parameter_shardings(mesh, config, shapes),
    )


def axis_rules(mesh: Mesh, model: ModelConfig) -> list[tuple[str, tuple[str, ...]]]:
    """Returns `RULES` as pairs, which flax takes, for the sizes of a model."""
    # The sizes of vocabularies and of sets of classes are given by the data: where they do not
    # divide, they are replicated instead of refused. A text classifier has both.
    sizes = [getattr(model, name, 0) for name in ("vocabulary", "classes")]
    undivided = any(size % mesh.shape["tensor"] for size in sizes)

    return [(name, axes) for name, axes in RULES.items() if name != "vocabulary" or not undivided]


def batch_shards(mesh: Mesh) -> int:
    """Returns the number of parts that a mesh splits a batch into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that replicates an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_by_batch(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the leading axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


@functools.lru_cache(maxsize=8)
def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the rows of a global batch that belong to this process's devices, ascending."""
    # If the batch axes follow the processes, they are one contiguous part; processes that a tensor
    # axis spans read the same rows.
    parts = split_by_batch(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts]))


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray], batch_size: int) -> dict[str, Any]:
    """Returns the global batch on the devices.

    Args:
      batch: this process's rows of it, those of `local_rows`.
      batch_size: rows of the global batch.
    """
    sharding, rows = split_by_batch(mesh), local_rows(mesh, batch_size)

    def put(array: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            # jax asks for rows of the global batch, of which this process holds `rows`.
            start, stop, _ = index[0].indices(batch_size)
            first = np.searchsorted(rows, start)
            return array[first : first + stop - start]

        shape = (batch_size, *array.shape[1:])
        return jax.make_array_from_callback(shape, sharding, part)

    return {name: put(array) for name, array in batch.items()}
