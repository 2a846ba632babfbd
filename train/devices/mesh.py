"""The device mesh, and how the state and the batches lie on it.

Three axes, all Auto, so that the compiler places what is communicated (diffrax refuses the Explicit
axes that `jax.make_mesh` makes by itself): the batch is split over 'data' and 'fsdp', the state
over 'fsdp' and 'tensor'.
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

from odeformer.models.registry import ModelConfig
from odeformer.transformer.checks import check_backend
from odeformer.transformer.layers import param_dtype
from odeformer.transformer.sharding import parameter_axes
from train.config.run import MeshConfig, RunConfig
from train.errors import BadInput

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
# The library's names of axes -> the mesh's. The first rule wins: of a state [batch, tokens, width]
# the batch is split, and only of a parameter the width.
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
      BadInput: sizes that are not those of the devices.
    """
    count = jax.device_count() if devices is None else len(devices)
    sizes = [getattr(config, axis) for axis in AXES]
    given = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1:
        raise BadInput(f"config.mesh ({given}) leaves several axes open: -1 stands for one at most")
    if count % known or (-1 not in sizes and known != count):
        wanted = "divides" if -1 in sizes else "is"
        raise BadInput(
            f"config.mesh ({given}) does not fit the {count} devices: give sizes whose product "
            f"{wanted} {count}, one of them -1 for the devices that the others leave"
        )
    shape = tuple(count // known if size == -1 else size for size in sizes)
    arranged = _arrange(shape, jax.devices() if devices is None else devices)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """The devices so that neighbours on the mesh are near; slices are joined along 'data'."""
    data, *inner = shape
    tpus = devices[0].platform == "tpu"  # among GPUs each host would be a slice
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if tpus else 1
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if data % slices:
        raise BadInput(
            f"config.mesh.data={data} does not divide over the {slices} slices, between which "
            f"only gradients may travel: take a multiple of {slices}"
        )
    within, across = (data // slices, *inner), (slices, *(1 for _ in inner))
    return mesh_utils.create_hybrid_device_mesh(
        within, across, devices, allow_split_physical_axes=True
    )


def check_fits(config: RunConfig, mesh: Mesh) -> None:
    """Raises BadInput where a run cannot be spread over a mesh.

    Args:
      config: of the run.
      mesh: of its devices.
    """
    check_model_fits(config.model, mesh)
    parallel, parts = config.parallel, batch_shards(mesh)
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    if config.batch_size % (parts * parallel.accumulate):
        raise BadInput(
            f"config.batch_size={config.batch_size} does not divide into "
            f"parallel.accumulate={parallel.accumulate} parts over mesh.data x mesh.fsdp = {parts} "
            f"devices: take a multiple of {parts * parallel.accumulate}"
        )
    if parallel.mode == "shard_map" and (tensor > 1 or fsdp > 1):
        raise BadInput(
            f"config.parallel.mode='shard_map' works on whole copies of the model, along mesh.data "
            f"alone; mesh.fsdp={fsdp} and mesh.tensor={tensor} were given: take 1 for both, or "
            "parallel.mode='jit'"
        )
    if parallel.mode == "shard_map" and config.model.depth.adjoint == "recursive":
        raise BadInput(
            "config.depth.adjoint='recursive' has no gradient under parallel.mode='shard_map': "
            "take adjoint 'checkpoint' or 'direct', or parallel.mode='jit'"
        )


def check_model_fits(model: ModelConfig, mesh: Mesh) -> None:
    """Raises BadInput where a model cannot be computed here, or be split over a mesh.

    Args:
      model: the model's config.
      mesh: of the devices.
    """
    try:
        param_dtype(model.dtype)
        check_backend(model.attention)
    except ValueError as error:
        raise BadInput(f"config.model: {error}") from error
    for key, axis in (("heads", "tensor"), ("mlp", "tensor"), ("width", "fsdp")):
        size, parts = getattr(model, key), mesh.shape[axis]
        if size % parts:
            raise BadInput(
                f"config.model.{key}={size} does not divide over mesh.{axis}={parts} devices: take "
                f"mesh.{axis} from the divisors of {size}"
            )
    if model.fused and mesh.shape["tensor"] > 1:
        raise BadInput(
            f"config.model.fused=True joins kernels that mesh.tensor={mesh.shape['tensor']} "
            "splits: take mesh.tensor=1 or model.fused=False"
        )


@contextlib.contextmanager
def on_mesh(mesh: Mesh, model: ModelConfig) -> Iterator[None]:
    """A context in which the library's constraints act: of every call of a jitted step.

    The step's shardings say which devices these are; here only the mesh's shape is in force, for
    under a mesh of devices JAX would run on all of them what diffrax computes while it is traced.

    Args:
      mesh: the devices.
      model: whose axes are laid out.
    """
    shape = jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
    with shape, logical_axis_rules(_rules(mesh, model)):
        yield


def parameter_shardings(mesh: Mesh, model: ModelConfig, params: Any) -> Any:
    """Returns how a model's parameters lie on a mesh, a tree of their structure.

    Args:
      mesh: the devices.
      model: the model's config.
      params: the parameters, or their shapes.
    """
    return logical_to_mesh_sharding(parameter_axes(params), mesh, _rules(mesh, model))


def _rules(mesh: Mesh, model: ModelConfig) -> list[tuple[str, tuple[str, ...]]]:
    """RULES as flax takes them; classes or tokens that do not divide stay whole."""
    sizes = [getattr(model, name, 0) for name in ("vocabulary", "classes")]  # a classifier has both
    whole = {"vocabulary"} if any(size % mesh.shape["tensor"] for size in sizes) else set()
    return [(name, axes) for name, axes in RULES.items() if name not in whole]


def batch_shards(mesh: Mesh) -> int:
    """Returns into how many parts a mesh splits a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that puts a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_by_batch(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the leading axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


@functools.lru_cache(maxsize=8)
def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns which rows of a global batch lie on this process's devices, in ascending order.

    On a mesh whose batch axes follow the processes it is one contiguous part; processes that a
    tensor axis spans read the same rows.
    """
    parts = split_by_batch(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts]))


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray], batch_size: int) -> dict[str, Any]:
    """Returns the global batch on the devices.

    Args:
      mesh: the devices.
      batch: this process's rows of it, those of `local_rows`.
      batch_size: rows of the global batch.
    """
    sharding, rows = split_by_batch(mesh), local_rows(mesh, batch_size)

    def put(array: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            first = np.searchsorted(rows, start)
            return array[first : first + stop - start]

        shape = (batch_size, *array.shape[1:])
        return jax.make_array_from_callback(shape, sharding, part)

    return {name: put(array) for name, array in batch.items()}
