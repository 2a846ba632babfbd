"""Section 1: the card, the software on it, its bf16 matrix rate and its copy bandwidth."""

import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.accelerator.cases import SECS, TINY_SECS
from benchmarks.accelerator.rows import Rows
from benchmarks.accelerator.sections import CORE
from benchmarks.accelerator.tables import Line, Table, number, stamp
from benchmarks.accelerator.timing import time_steps
from train.devices import chips

PACKAGES = (*CORE, "numpy", "torch", "timm", "torchdiffeq", "transformers", "orbax-checkpoint")
SIDE, TINY_SIDE = 8192, 256  # of the matrices
ELEMENTS, TINY_ELEMENTS = 2**30, 2**20  # that are copied, float32


def run(rows: Rows, tiny: bool) -> None:
    """Measures the section's rows."""
    rows.measure("software", _software)
    rows.measure("matmul", lambda: _matmul(TINY_SIDE if tiny else SIDE, tiny))
    rows.measure("copy", lambda: _copy(TINY_ELEMENTS if tiny else ELEMENTS, tiny))


def _software() -> dict[str, Any]:
    """Versions, the driver, the device's memory."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    device = jax.local_devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    return {
        "versions": versions,
        "driver": _driver(),
        "platform_version": getattr(device.client, "platform_version", None),
        "memory_limit_gb": None if memory is None else memory / 1e9,
    }


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total",
        "--format=csv,noheader",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _matmul(side: int, tiny: bool) -> dict[str, Any]:
    """Dense bf16 products of random matrices: zeros would draw less power, and run faster."""
    a, b = (jax.random.normal(jax.random.key(i), (side, side), jnp.bfloat16) for i in range(2))
    product = jax.jit(jnp.dot)
    result = product(a, b)

    def advance() -> None:
        nonlocal result
        result = product(a, b)

    timing = time_steps(advance, lambda: jax.block_until_ready(result), TINY_SECS if tiny else SECS)
    chip = chips.find(jax.local_devices()[0].device_kind)
    flops_per_sec = 2 * side**3 / (timing.ms / 1e3)
    return {
        **timing._asdict(),
        "side": side,
        "tflops_per_sec": flops_per_sec / 1e12,
        "of_peak": None if chip is None else flops_per_sec / chip.peak_flops,
    }


def _copy(elements: int, tiny: bool) -> dict[str, Any]:
    """An array read and written; the bytes of both count."""
    array = jnp.ones(elements, jnp.float32)
    program = jax.jit(lambda x: x + 1, donate_argnums=0)

    def advance() -> None:
        nonlocal array
        array = program(array)

    timing = time_steps(advance, lambda: jax.block_until_ready(array), TINY_SECS if tiny else SECS)
    return {
        **timing._asdict(),
        "gb": 4 * elements / 1e9,
        "gb_per_sec": 2 * 4 * elements / 1e9 / (timing.ms / 1e3),
    }


def tables(lines: Mapping[str, Line]) -> list[Table]:
    """Returns the section's tables.

    Args:
      lines: the newest line of each row, by its name.
    """
    product, copy = lines.get("matmul"), lines.get("copy")
    return [
        Table(
            "Matrix rate and bandwidth",
            ("what", "figure", "of the maker's peak"),
            [
                (
                    f"bf16 product of {SIDE:,} x {SIDE:,} random matrices, TFLOP/s",
                    number(product, "tflops_per_sec", ".0f"),
                    number(product, "of_peak", ".2f"),
                ),
                ("float32 array read and written, GB/s", number(copy, "gb_per_sec", ",.0f"), ""),
            ],
            stamp(lines),
        )
    ]
