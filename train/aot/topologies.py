"""Slices of TPUs, as devices to compile for on a machine that has none."""

import dataclasses
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from train.aot.checks import (
    check_compiler,
    check_exists,
    check_generation,
    check_slices,
    describing,
)
from train.devices.chips import CHIPS, Chip

# What libtpu wants to know of the machine. Unanswered, it would ask the network, and report on
# standard error that it found no TPU.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


@dataclasses.dataclass(frozen=True)
class Generation:
    """The slices that a generation of TPUs is offered in.

    libtpu lists none, and accepts shapes that do not exist.

    Attributes:
      shapes: the shapes with names.
      max_chips: of a regular shape AxBxC, A <= B <= C, multiples of 4; 0 if there are no such.
      options: options of libtpu in addition to the shape.

    Source: Google Cloud's documentation of each generation, 'Configurations'.
    """

    shapes: tuple[str, ...]
    max_chips: int = 0
    options: tuple[tuple[str, Any], ...] = ()

    def has(self, shape: str) -> bool:
        """Whether a slice of the shape, as '4x4', exists."""
        if shape in self.shapes:
            return True

        sizes = [int(size) for size in shape.split("x")]
        regular = len(sizes) == 3 and sizes == sorted(sizes) and not any(n % 4 for n in sizes)
        return regular and 0 < sizes[0] * sizes[1] * sizes[2] <= self.max_chips

    def describe(self, name: str) -> str:
        """Returns the names of the slices, in words."""
        text = ", ".join(f"{name}:{shape}" for shape in self.shapes)
        if self.max_chips:
            text += f", and {name}:AxBxC of multiples of 4, A <= B <= C, up to {self.max_chips:,}"
            text += " chips"

        return text


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
GENERATIONS = {
    # A v4 has two cores that work as one device; by default libtpu makes two devices of them.
    "v4": Generation(_CUBES, 4096, (("chip_config_name", "megacore"),)),
    "v5e": Generation(_FLAT),
    "v5p": Generation(_CUBES, 6144),
    "v6e": Generation(_FLAT),
}


def find(topology: str) -> tuple[Generation, Chip]:
    """Returns the generation and the chip of a slice.

    Args:
      topology: its name, as 'v5e:16x16'.

    Raises:
      BadInput: there is no such TPU, or no such slice of it; the message lists those that exist.
    """
    name, _, shape = topology.partition(":")
    check_generation(name, GENERATIONS)

    generation = GENERATIONS[name]
    is_shape = re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) is not None
    check_exists(topology, is_shape and generation.has(shape), generation.describe(name))
    return generation, CHIPS[name]


def slice_devices(topology: str, num_slices: int = 1) -> list[Any]:
    """Returns the devices of one or several slices, one per chip, to compile for.

    They compute nothing, and no TPU is needed. JAX is set to the CPU: it must not have chosen
    another backend yet.

    Args:
      topology: the name of a slice; see `find`.
      num_slices: number of such slices, joined by the data centre's network.

    Raises:
      BadInput: there is no such slice, no slice at all, or libtpu, the compiler, is not installed.
    """
    generation, _ = find(topology)
    check_slices(num_slices)
    check_compiler()

    # Before libtpu is loaded, which reads its environment once. With it installed JAX would try the
    # TPU first for everything else.
    os.environ.update(_ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")

    options: dict[str, Any] = dict(generation.options)
    if num_slices > 1:
        options["num_slices"] = num_slices
    # The only slice whose host has a single chip, where libtpu expects several.
    if topology.endswith(":1x1"):
        options["chips_per_host_bounds"] = (1, 1, 1)

    with describing(topology):
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    return list(described.devices)
