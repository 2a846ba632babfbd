"""What the train step needs on a slice of TPUs, read off the program that XLA compiles."""

import dataclasses
import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from odeformer import ModelConfig, flops
from train.adapters import abstract_base
from train.aot import compiled, topologies
from train.aot.advice import advise
from train.checkpoint.initial_checks import check_optimizer_names
from train.config.run import RunConfig
from train.data.blank import blank_split
from train.devices.checks import check_run_fits
from train.devices.mesh import device_mesh
from train.optimizer import make_optimizer
from train.state import expected_state
from train.step import lower_train_step
from train.tasks import make_task

# Where XLA refuses a program it names the memory in its message alone, in units of powers of 1024.
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_REFUSAL = re.compile(
    r"(?:Used |\()([\d.]+)([KMGT]?)B?\)? (?:of|exceeds available HBM) \(?([\d.]+)([KMGT]?)",
)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a step needs; bytes are per chip, FLOPs and parameters those of all chips together.

    Attributes:
      config: the config's file, as on the command line.
      topology: the name of a slice.
      num_slices: number of slices.
      chips: number of chips in all slices.
      mesh: size of each axis.
      batch_size: examples per step.
      fits: whether XLA compiles it for the chip's memory.
      parameters: number of parameters.
      parameter_bytes: the parameters.
      optimizer_bytes: the optimiser's state.
      ema_bytes: the moving average of the weights; None if the run keeps none.
      temporary_bytes: all else at the step's peak: activations, gradients, the batch, the program.
      total_bytes: all of these; None where XLA refuses the program without a figure.
      available_bytes: HBM that XLA may use where it refuses the program, else all of it.
      model_flops: FLOPs per step, recomputed ones excepted; None under adaptive steps.
      recomputed_flops: the recomputed ones; None under adaptive steps or an adjoint of diffrax.
      collectives: kind, place, count, bytes of all executions, and whether all trip counts are
        known; None where XLA refuses the program.
      collective_bytes: sum over the collectives; None where XLA refuses the program.
      advice: settings that would need less memory.
      compile_secs: the time that XLA took.
    """

    config: str
    topology: str
    num_slices: int
    chips: int
    mesh: dict[str, int]
    batch_size: int
    fits: bool
    parameters: int
    parameter_bytes: int
    optimizer_bytes: int
    ema_bytes: int | None
    temporary_bytes: int | None
    total_bytes: int | None
    available_bytes: int
    model_flops: int | None
    recomputed_flops: int | None
    collectives: list[dict[str, Any]] | None
    collective_bytes: int | None
    advice: list[str]
    compile_secs: float


def make_report(config: RunConfig, name: str, topology: str, num_slices: int = 1) -> Report:
    """Compiles a run's train step for slices of TPUs.

    Args:
      config: the run's config.
      name: the config's file, for the report.
      topology: the name of a slice; see `topologies.find`.
      num_slices: number of slices.

    Raises:
      BadInput: the slices do not exist, or the run cannot be split over their chips.
    """
    devices = topologies.slice_devices(topology, num_slices)
    _, chip = topologies.find(topology)
    mesh = device_mesh(config.mesh, devices)
    check_run_fits(config, mesh)
    check_optimizer_names(config)

    # The shapes of a batch are all that the program depends on.
    split = blank_split(config)
    batch = split.gather(np.zeros(1, np.int64)) | {"draw": np.zeros(1, np.int32)}
    optimizer = make_optimizer(config.optimizer, config.train_steps, config.model.depth.layers)
    task = make_task(config, split)
    lowered = lower_train_step(config, optimizer, task, mesh, batch, platform="tpu")

    start = time.perf_counter()
    program, total, available = _compile(lowered, chip.hbm_bytes)
    secs = time.perf_counter() - start

    state = expected_state(config, mesh)
    params = (state.params, abstract_base(config, mesh))
    parts = [_bytes_per_chip(tree) for tree in (params, state.opt_state, state.ema)]

    traffic = None
    if program is not None:
        traffic = compiled.summarise(compiled.collectives(program.as_text() or ""))

    fits = program is not None and total is not None and total <= available
    return Report(
        config=name,
        topology=topology,
        num_slices=num_slices,
        chips=len(devices),
        mesh=dict(mesh.shape),
        batch_size=config.batch_size,
        fits=fits,
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        parameter_bytes=parts[0],
        optimizer_bytes=parts[1],
        ema_bytes=None if state.ema is None else parts[2],
        temporary_bytes=None if total is None else max(total - sum(parts), 0),
        total_bytes=total,
        available_bytes=available,
        model_flops=_flops_per_step(config, flops.training),
        recomputed_flops=_flops_per_step(config, flops.recomputed),
        collectives=None if traffic is None else [_as_dict(row, config) for row in traffic],
        collective_bytes=None if traffic is None else sum(row.bytes for row in traffic),
        advice=[] if fits else advise(config, mesh, num_slices),
        compile_secs=round(secs, 1),
    )


def _compile(
    lowered: jax.stages.Lowered, hbm_bytes: int
) -> tuple[jax.stages.Compiled | None, int | None, int]:
    """The program, None if it does not fit; the memory it needs per chip; the available memory."""
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        message = str(error)

        # Running out of another memory, such as vmem, is a failure of the compiler.
        if "RESOURCE_EXHAUSTED" not in message or "hbm" not in message.lower():
            raise

        found = _REFUSAL.search(message)
        if found is None:
            return None, None, hbm_bytes

        used, used_unit, available, available_unit = found.groups()
        sizes = (float(used) * 1024 ** _UNITS[used_unit], float(available))
        return None, int(sizes[0]), int(sizes[1] * 1024 ** _UNITS[available_unit])

    return program, compiled.memory(program).total, hbm_bytes


def _bytes_per_chip(tree: Any) -> int:
    """The bytes of each device's part of arrays that have a sharding."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _flops_per_step(config: RunConfig, count: Callable[[ModelConfig], int]) -> int | None:
    """The FLOPs of a batch; None where the number of steps depends on the input."""
    try:
        return config.batch_size * count(config.model)
    except ValueError:
        return None


def _as_dict(row: compiled.Traffic, config: RunConfig) -> dict[str, Any]:
    """A row of the report, with the name of the innermost loop around it."""
    # The loops of a train step, from the outside in.
    places = ["step", "scan over groups", "solver's loop"]
    if config.parallel.accumulate > 1:
        places.insert(1, "scan over parts")

    # Whatever is deeper is inside the solver's loop.
    place = places[min(row.depth, len(places) - 1)]
    return {
        "kind": row.kind,
        "place": place,
        "count": row.count,
        "bytes": row.bytes,
        "known": row.exact,
    }
