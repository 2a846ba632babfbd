"""Compiles the train step for a slice of TPUs, on a machine that has none, and says what it takes.

    python -m train.aot --config=configs/imagenet.py:variant=vit_l --topology=v5e:16x16
    python -m train.aot --config=configs/lm1b.py:variant=gpt_1b --topology=v5e:8x8 --num_slices=2 \\
        --config.mesh.data=2 --json

It is the program that `python -m train` runs on such a slice, as XLA compiles it; no data is read.
Printed for each chip: parameters, optimiser state, the moving average of the weights and temporary
memory, against the chip's HBM; the model FLOPs of a step; and what the chips tell one another, as
train/aot/compiled.py counts it. Exit codes: 0 it fits, 1 it does not (and what would help) or failed,
2 bad input.
"""

import dataclasses
import json
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from odeformer import flops
from odeformer.models.registry import ModelConfig
from train import command_line
from train.aot import compiled, topologies
from train.config.run import RunConfig, from_config_dict
from train.data.blank import blank_split
from train.devices.mesh import batch_shards, check_fits, device_mesh
from train.errors import BadInput
from train.optimizer import make_optimizer
from train.state import abstract_state
from train.step import lower_train_step
from train.tasks import make_task

FLAGS = flags.FlagValues()
flags.DEFINE_string("topology", None, "The slice, e.g. v5e:16x16.", flag_values=FLAGS)
flags.DEFINE_integer(
    "num_slices", 1, "Such slices, joined by the data centre's network.", flag_values=FLAGS
)
flags.DEFINE_bool("json", False, "Print one JSON object, and nothing else.", flag_values=FLAGS)

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}  # of XLA's messages, by powers of 1024
_REFUSAL = re.compile(
    r"(?:Used |\()([\d.]+)([KMGT]?)B?\)? (?:of|exceeds available HBM) \(?([\d.]+)([KMGT]?)",
)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a step takes; bytes are those of one chip, FLOPs and parameters of all together.

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
      ema_bytes: of the weights' moving average; None where none is kept.
      temporary_bytes: all else at the step's peak: activations, gradients, the batch, the program.
      total_bytes: of all these; None where XLA refuses the program and does not say.
      available_bytes: what XLA has of the HBM where it refuses the program, else all of it.
      model_flops: of a step, without what is computed twice; None under adaptive steps.
      recomputed_flops: what is computed twice, likewise, or under an adjoint of diffrax.
      collectives: kind, place, count, bytes of all executions, and whether all trip counts are
        known; None where XLA refuses the program.
      collective_bytes: of all of them; likewise.
      advice: what would take less memory.
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


def inspect(config: RunConfig, name: str, topology: str, num_slices: int = 1) -> Report:
    """Compiles a run's train step for slices of TPUs.

    Args:
      config: of the run.
      name: of its file, for the report.
      topology: of a slice; see `topologies.find`.
      num_slices: how many slices.

    Raises:
      BadInput: slices that do not exist, or that the run cannot be spread over.
    """
    devices = topologies.slice_devices(topology, num_slices)
    _, chip = topologies.find(topology)
    mesh = device_mesh(config.mesh, devices)
    check_fits(config, mesh)
    split = blank_split(config)
    batch = split.gather(np.zeros(1, np.int64)) | {"draw": np.zeros(1, np.int32)}
    lowered = lower_train_step(config, make_task(config, split), mesh, batch, platform="tpu")
    start = time.perf_counter()
    program, total, available = _compile(lowered, chip.hbm_bytes)
    secs = time.perf_counter() - start
    state = abstract_state(config, make_optimizer(config.optimizer, config.train_steps), mesh)
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
        advice=[] if fits else _advice(config, mesh, num_slices),
        compile_secs=round(secs, 1),
    )


def _compile(
    lowered: jax.stages.Lowered, hbm_bytes: int
) -> tuple[jax.stages.Compiled | None, int | None, int]:
    """The program, what it takes of a chip's memory, and what there is of it.

    No program where XLA refuses to make one for want of memory.
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
    """The FLOPs of a batch; None where the steps of a solve follow from the input."""
    try:
        return config.batch_size * count(config.model)
    except ValueError:
        return None


def _as_dict(one: compiled.Traffic, config: RunConfig) -> dict[str, Any]:
    """A row of the report, with the loops around it by name."""
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


def _advice(config: RunConfig, mesh: Mesh, num_slices: int) -> list[str]:
    """What would take less memory, of the settings that are not at their limit."""
    model, depth, parallel = config.model, config.model.depth, config.parallel
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    chips, advice = mesh.size // num_slices, []
    whole = [n for n in range(1, chips + 1) if chips % n == 0]  # sizes that a slice divides into
    if parallel.mode == "jit":
        sizes = [n for n in whole if chips % (n * tensor) == 0 and model.width % n == 0]
        if max(sizes) > fsdp:
            rest = mesh.size // (max(sizes) * tensor)
            advice.append(
                f"mesh.fsdp={max(sizes)} (and mesh.data={rest}) splits the state over more chips"
            )
        sizes = [n for n in whole if n > tensor and not (model.heads % n or model.mlp % n)]
        if sizes and not model.fused:
            split = math.gcd(fsdp, chips // sizes[0])
            rest = mesh.size // (split * sizes[0])
            advice.append(
                f"mesh.tensor={sizes[0]} (and mesh.fsdp={split}, mesh.data={rest}) splits heads "
                "and MLP, and with them what a layer keeps"
            )
    else:
        advice.append("parallel.mode=jit lets mesh.fsdp and mesh.tensor split the state")
    rows = config.batch_size // (batch_shards(mesh) * parallel.accumulate)
    if rows > 1:
        factor = next(n for n in range(2, rows + 1) if rows % n == 0)
        advice.append(
            f"parallel.accumulate={factor * parallel.accumulate} takes the batch in smaller parts"
        )
        advice.append(f"batch_size={config.batch_size // factor} is a smaller batch")
    if depth.policy is not None:
        advice.append("depth.policy=None keeps less from the forward pass")
    if depth.adjoint in ("store", "direct"):
        advice.append("depth.adjoint=checkpoint computes again rather than keep")
    if model.dtype != "bfloat16":
        advice.append("model.dtype=bfloat16 halves what a layer keeps")
    return advice or ["every setting is at its limit: take more chips, or some with more memory"]


def print_report(report: Report, console: Console) -> None:
    """Prints the tables of a report.

    Args:
      report: of `inspect`.
      console: where to.
    """
    slices = f"{report.num_slices} slices of " if report.num_slices > 1 else ""
    mesh = ", ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    console.print(f"{report.config} on {slices}{report.topology}: {report.chips} chips ({mesh})")
    table = Table(title="memory of a chip")
    table.add_column("what")
    table.add_column("bytes", justify="right")
    for name, size in (
        (f"parameters ({report.parameters:,} in all)", report.parameter_bytes),
        ("optimiser state", report.optimizer_bytes),
        ("moving average of the weights", report.ema_bytes),
        ("temporary, the batch and the program among it", report.temporary_bytes),
        ("total at the peak", report.total_bytes),
        ("of the chip", report.available_bytes),
    ):
        if size is not None:
            table.add_row(name, in_words(size))
    console.print(table)
    console.print(_verdict(report))
    if report.model_flops is None:
        console.print("Model FLOPs: the steps of an adaptive solve follow from its input.")
    else:
        again = "not counted under this adjoint"
        if report.recomputed_flops is not None:
            again = f"{report.recomputed_flops / report.chips / 1e12:.3f}"
        console.print(
            f"Model TFLOPs of a step of {report.batch_size:,} examples: "
            f"{report.model_flops / 1e12:,.1f}, {report.model_flops / report.chips / 1e12:.3f} a "
            f"chip; computed twice, a chip: {again}"
        )
    if report.collectives is not None:
        _print_collectives(report, console)


def _print_collectives(report: Report, console: Console) -> None:
    table = Table(title="collectives of a chip in a step")
    for column in ("kind", "where"):
        table.add_column(column)
    for column in ("times", "bytes"):
        table.add_column(column, justify="right")
    for one in report.collectives or ():
        mark = "" if one["known"] else " *"
        table.add_row(one["kind"], one["place"], f"{one['count']:,}{mark}", in_words(one["bytes"]))
    table.add_row("all", "", "", in_words(report.collective_bytes or 0))
    if any(not one["known"] for one in report.collectives or ()):
        table.caption = "* inside a loop whose trip count is not known before it runs: taken as 1"
    console.print(table)


def _verdict(report: Report) -> str:
    if report.fits:
        return f"It fits. XLA compiled it in {report.compile_secs:g} s."
    lines = ["It does not fit"]
    if report.total_bytes is not None:
        lines[0] += f", by {in_words(report.total_bytes - report.available_bytes)}"
    lines[0] += ". What would help, as --config.KEY=VALUE:"
    return "\n".join([*lines, *(f"  {line}" for line in report.advice)])


def in_words(size: int) -> str:
    """Returns a number of bytes in the unit that suits it, as '1.50 GiB'."""
    power = min(max(size.bit_length() - 1, 0) // 10, 4)
    return f"{size / 1024**power:.2f} {('', 'Ki', 'Mi', 'Gi', 'Ti')[power]}B"


def main(argv: Sequence[str]) -> None:
    """The program."""
    cfg = command_line.parse_with_config(argv, FLAGS)
    if not FLAGS.topology:
        raise BadInput("--topology is missing: give a slice of TPUs, e.g. --topology=v5e:4x4")
    name = command_line.flag_value(argv, "config") or ""
    report = inspect(from_config_dict(cfg.to_dict()), name, FLAGS.topology, FLAGS.num_slices)
    if FLAGS.json:
        print(json.dumps(dataclasses.asdict(report)))
    else:
        print_report(report, Console(soft_wrap=True, highlight=False))
    if not report.fits:
        sys.exit(command_line.FAILED)


if __name__ == "__main__":
    sys.exit(command_line.run(main, sys.argv, FLAGS, __doc__, "config"))
