"""What would make a train step fit into a chip's memory."""

import math

from jax.sharding import Mesh

from train.config.run import RunConfig
from train.devices.mesh import batch_shards


def advise(config: RunConfig, mesh: Mesh, num_slices: int) -> list[str]:
    """Returns the settings that would need less memory, of those not yet at their limit."""
    model, depth, parallel = config.model, config.model.depth, config.parallel
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    chips, advice = mesh.size // num_slices, []
    divisors = [n for n in range(1, chips + 1) if chips % n == 0]

    # An axis of the mesh other than data never crosses slices: its size divides a slice.
    if parallel.mode == "jit":
        sizes = [n for n in divisors if chips % (n * tensor) == 0 and model.width % n == 0]
        if max(sizes) > fsdp:
            rest = mesh.size // (max(sizes) * tensor)
            advice.append(
                f"mesh.fsdp={max(sizes)} (and mesh.data={rest}) splits the state over more chips"
            )

        # Heads (kv_heads divide heads) and MLP must divide over the tensor axis; fused kernels join
        # what it would split.
        keys = model.kv_heads or model.heads
        sizes = [n for n in divisors if n > tensor and not (keys % n or model.mlp % n)]
        if sizes and not model.fused:
            split = math.gcd(fsdp, chips // sizes[0])
            rest = mesh.size // (split * sizes[0])
            advice.append(
                f"mesh.tensor={sizes[0]} (and mesh.fsdp={split}, mesh.data={rest}) splits heads "
                "and MLP, and with them what a layer stores"
            )
    else:
        advice.append("parallel.mode=jit lets mesh.fsdp and mesh.tensor split the state")

    rows = config.batch_size // (batch_shards(mesh) * parallel.accumulate)
    if rows > 1:
        factor = next(n for n in range(2, rows + 1) if rows % n == 0)
        advice.append(
            f"parallel.accumulate={factor * parallel.accumulate} splits the batch in smaller parts"
        )
        advice.append(f"batch_size={config.batch_size // factor} is a smaller batch")

    if depth.policy is not None:
        advice.append("depth.policy=None stores less of the forward pass")
    if depth.adjoint in ("store", "direct"):
        advice.append("depth.adjoint=checkpoint recomputes instead of storing")
    if model.dtype != "bfloat16":
        advice.append("model.dtype=bfloat16 halves what a layer stores")

    return advice or ["every setting is at its limit: take more chips, or chips with more memory"]
