"""The device mesh, and how the state and the batches lie on it."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train.config import MeshConfig
from train.errors import BadInput


def device_mesh(config: MeshConfig) -> Mesh:
    """Returns a mesh of all devices with the axis 'data', over which batches are split.

    The axis is Auto: the compiler places the collectives. (Explicit axes, the default of
    `jax.make_mesh`, are refused by every diffrax solve.)

    Raises:
      BadInput: an axis that the devices do not fill.
    """
    devices = jax.device_count()
    size = devices if config.data == -1 else config.data
    if size != devices:
        raise BadInput(
            f"config.mesh.data={config.data} does not fill the {devices} devices: give {devices}, "
            "or -1 for all of them"
        )
    return jax.make_mesh((size,), ("data",), axis_types=(AxisType.Auto,))


def check_batch(mesh: Mesh, batch_size: int) -> None:
    """Raises BadInput where the training batch does not divide over the devices."""
    if batch_size % mesh.size:
        raise BadInput(
            f"config.batch_size={batch_size} does not divide over the {mesh.size} devices: take a "
            f"multiple of {mesh.size}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that puts a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_by_batch(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the leading axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the global batch of which `batch` is this process's part."""
    sharding = split_by_batch(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
