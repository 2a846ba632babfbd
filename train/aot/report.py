"""What the train step needs on a slice of TPUs, read off the program that XLA compiles."""

import dataclasses
import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from odeformer import flops
from odeformer.models.registry import ModelConfig
from train.aot import compiled, topologies
from train.aot.advice import advise
from train.config.run import RunConfig
from train.data.blank import blank_split
from train.devices.mesh import check_fits, device_mesh
from train.optimizer import make_optimizer
from train.state import abstract_state
from train.step import lower_train_step
from train.tasks import make_task

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}  # of XLA's messages, by powers of 1024
_REFUSAL = re.compile(
    r"(?:Used |\()([\d.]+)([KMGT]?)B?\)? (?:of|exceeds available HBM) \(?([\d.]+)([KMGT]?)",
)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a step needs; bytes are per chip, FLOPs and parameters those of all chips together.

    Attributes:
      config: the file, as it was given.
      topology: of a slice.
      num_slices: how many slices.
      chips: in all slices.
      mesh: size of each axis.
      batch_size: examples of a step.
      fits: whether XLA compiles it for the chip's memory.
      parameters: their number.
      parameter_bytes: of the parameters.
      optimizer_bytes: of the optimiser's state.
      ema_bytes: of the weights' moving average; None if the run keeps none.
      temporary_bytes: all else at the step's peak: activations, gradients, the batch, the program.
      total_bytes: of all these; None where XLA refuses the program without a figure.
      available_bytes: HBM that XLA may use where it refuses the program, else all of it.
      model_flops: of a step, without what is recomputed; None under adaptive steps.
      recomputed_flops: what is recomputed; None under adaptive steps or an adjoint of diffrax.
      collectives: kind, place, count, bytes of all executions, and whether all trip counts are
        known; None where XLA refuses the program.
      collective_bytes: of all of them; None where XLA refuses the program.
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
      config: of the run.
      name: of its file, for the report.
      topology: of a slice; see `topologies.find`.
      num_slices: how many slices.

    Raises:
      BadInput: slices that do not exist, or whose chips the run cannot be split over.
    """
    devices = topologies.slice_devices(topology, num_slices)
    _, chip = topologies.find(topology)
    mesh = device_mesh(config.mesh, devices)
    check_fits(config, mesh)

    # The shapes of a batch are all that the program depends on.
    split = blank_split(config)
    batch = split.gather(np.zeros(1, np.int64)) | {"draw": np.zeros(1, np.int32)}
    optimizer = make_optimizer(config.optimizer, config.train_steps)
    task = make_task(config, split)
    lowered = lower_train_step(config, optimizer, task, mesh, batch, platform="tpu")

    start = time.perf_counter()
    program, total, available = _compile(lowered, chip.hbm_bytes)
    secs = time.perf_counter() - start

    state = abstract_state(config, optimizer, mesh)
    parts = [_bytes_a_chip(tree) for tree in (state.params, state.opt_state, state.ema)]

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
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        parameter_bytes=parts[0],
        optimizer_bytes=parts[1],
        ema_bytes=None if state.ema is None else parts[2],
        temporary_bytes=None if total is None else max(total - sum(parts), 0),
        total_bytes=total,
        available_bytes=available,
        model_flops=_of_a_step(config, flops.training),
        recomputed_flops=_of_a_step(config, flops.recomputed),
        collectives=None if traffic is None else [_as_dict(one, config) for one in traffic],
        collective_bytes=None if traffic is None else sum(one.bytes for one in traffic),
        advice=[] if fits else advise(config, mesh, num_slices),
        compile_secs=round(secs, 1),
    )


def _compile(
    lowered: jax.stages.Lowered, hbm_bytes: int
) -> tuple[jax.stages.Compiled | None, int | None, int]:
    """The program, the memory that it needs per chip, and the memory that there is.

    The program is None where XLA refuses to compile it, as it needs more memory than there is.
    """
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message or "hbm" not in message.lower():
            raise

        found = _REFUSAL.search(message)
        if found is None:
            return None, None, hbm_bytes

        used, used_unit, available, available_unit = found.groups()
        sizes = (float(used) * 1024 ** _UNITS[used_unit], float(available))
        return None, int(sizes[0]), int(sizes[1] * 1024 ** _UNITS[available_unit])

    return program, compiled.memory(program).total, hbm_bytes


def _bytes_a_chip(tree: Any) -> int:
    """The bytes of each device's part of arrays that have a sharding."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _of_a_step(config: RunConfig, count: Callable[[ModelConfig], int]) -> int | None:
    """The FLOPs of a batch; None where the number of steps depends on the input."""
    try:
        return config.batch_size * count(config.model)
    except ValueError:
        return None


def _as_dict(one: compiled.Traffic, config: RunConfig) -> dict[str, Any]:
    """A row of the report, with the names of the loops that surround it."""
    places = ["step", "scan over groups", "solver's loop"]
    if config.parallel.accumulate > 1:
        places.insert(1, "scan over parts")

    place = places[min(one.depth, len(places) - 1)]
    return {
        "kind": one.kind,
        "place": place,
        "count": one.count,
        "bytes": one.bytes,
        "known": one.known,
    }
