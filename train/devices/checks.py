"""Whether a mesh fits the devices, and a run fits the mesh."""

import math
from collections.abc import Mapping

from jax.sharding import Mesh

from odeformer import ModelConfig, check_computable
from train.config.run import RunConfig
from train.errors import BadInput


def check_sizes(sizes: Mapping[str, int], count: int) -> None:
    """Raises BadInput if axes of these sizes, one of which may be open (-1), do not fit devices.

    Args:
      sizes: of the axes, by name.
      count: number of devices.
    """
    text = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise BadInput(f"config.mesh ({text}) leaves several axes open: -1 stands for one at most")

    fixed = math.prod(size for size in sizes.values() if size != -1)
    if count % fixed or (not open_axes and fixed != count):
        wanted = "divides" if open_axes else "is"
        raise BadInput(
            f"config.mesh ({text}) does not fit the {count} devices: give sizes whose product "
            f"{wanted} {count}, one of them -1 for the devices that the others leave"
        )


def check_slices(data: int, slices: int) -> None:
    """Raises BadInput if the axis 'data' cannot be split over several slices of TPUs."""
    if data % slices:
        raise BadInput(
            f"config.mesh.data={data} does not divide over the {slices} slices, between which "
            f"only gradients may be exchanged: take a multiple of {slices}"
        )


def check_run_fits(config: RunConfig, mesh: Mesh) -> None:
    """Raises BadInput if a run cannot be split over a mesh."""
    check_model_fits(config.model, mesh)
    data, fsdp, tensor = (mesh.shape[axis] for axis in ("data", "fsdp", "tensor"))
    parallel, parts = config.parallel, data * fsdp

    if config.batch_size % (parts * parallel.accumulate):
        raise BadInput(
            f"config.batch_size={config.batch_size} does not divide into "
            f"parallel.accumulate={parallel.accumulate} parts over mesh.data x mesh.fsdp = {parts} "
            f"devices: take a multiple of {parts * parallel.accumulate}"
        )

    # Inside shard_map the step communicates the gradients over 'data', and nothing else.
    if parallel.mode == "shard_map" and (tensor > 1 or fsdp > 1):
        raise BadInput(
            f"config.parallel.mode='shard_map' works on replicas of the model, along mesh.data "
            f"alone; mesh.fsdp={fsdp} and mesh.tensor={tensor} were given: take 1 for both, or "
            "parallel.mode='jit'"
        )

    # A limit of diffrax: its recursive adjoint has no gradient inside shard_map (diffrax#735).
    if parallel.mode == "shard_map" and config.model.depth.adjoint == "recursive":
        raise BadInput(
            "config.depth.adjoint='recursive' has no gradient under parallel.mode='shard_map': "
            "take adjoint 'checkpoint' or 'direct', or parallel.mode='jit'"
        )


def check_model_fits(model: ModelConfig, mesh: Mesh) -> None:
    """Raises BadInput if a model cannot be computed on this backend, or split over a mesh."""
    try:
        check_computable(model)
    except ValueError as error:
        raise BadInput(f"config.model: {error}") from error

    for key, axis in (("heads", "tensor"), ("mlp", "tensor"), ("width", "fsdp")):
        size, parts = getattr(model, key), mesh.shape[axis]
        if size % parts:
            raise BadInput(
                f"config.model.{key}={size} does not divide over mesh.{axis}={parts} devices: take "
                f"mesh.{axis} from the divisors of {size}"
            )

    # A device has its own heads of queries, and needs the keys and values that these read.
    keys, parts = model.kv_heads or model.heads, mesh.shape["tensor"]
    if keys % parts:
        raise BadInput(
            f"config.model.kv_heads={keys} does not divide over mesh.tensor={parts} devices: each "
            "would need a part of a head of keys and values, which no other device could use "
            f"without a copy; take mesh.tensor from the divisors of {keys}"
        )

    if model.fused and mesh.shape["tensor"] > 1:
        raise BadInput(
            f"config.model.fused=True joins kernels that mesh.tensor={mesh.shape['tensor']} "
            "splits: take mesh.tensor=1 or model.fused=False"
        )
