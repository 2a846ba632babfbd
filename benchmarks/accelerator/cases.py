"""Train steps that are compiled, then timed, one by one."""

import dataclasses
import functools
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.accelerator import models
from benchmarks.accelerator.rows import Rows, WrongAnswer
from benchmarks.accelerator.timing import time_steps
from odeformer import LMConfig, ViTConfig

SECS, TINY_SECS = 0.8, 0.02  # that a row's steps are timed for
TOGETHER = 8  # programs that are compiled at a time where nothing is timed
LOSS_TOLERANCE = 2e-2  # between two programs of one model in bfloat16, relative


@dataclasses.dataclass(frozen=True)
class Case:
    """A train step to be timed.

    Attributes:
      config: of the model, whose parameters serve.
      batch: examples of a batch.
      forward: the model; None for the library's of that config.
      update: see `models.make_step`.
      reference: a row of the section whose first loss this one's must equal.
    """

    config: ViTConfig | LMConfig
    batch: int
    forward: models.Forward | None = None
    update: str = "plain"
    reference: str | None = None


def threads(tiny: bool) -> int:
    """Returns how many programs that are not timed are compiled at a time."""
    return 2 if tiny else max(2, min(TOGETHER, (os.cpu_count() or 2) // 2))


def measure_all(rows: Rows, cases: Mapping[str, Case], tiny: bool) -> None:
    """Times each case whose row is not known yet, in their order.

    Compiling tries kernels out on the device, and keeps the fastest: two programs at a time would
    disturb each other's choice, and the steps that are timed.
    """
    states = _States()
    for name, case in cases.items():
        if rows.is_due(name):
            rows.record(name, functools.partial(_time, rows, case, states, tiny))


class _States:
    """The initial states of the models, kept for one model at a time."""

    def __init__(self):
        self._kept: tuple[Any, models.State] | None = None

    def copy(self, case: Case) -> models.State:
        """Returns the initial state of a case's model, to be donated."""
        key = models.plain(case.config)
        if self._kept is None or self._kept[0] != key:
            self._kept = None
            self._kept = key, models.make_state(key)
        return jax.tree.map(jnp.copy, self._kept[1])


def compile_step(case: Case) -> tuple[Any, float]:
    """Returns the compiled step, its state donated, and how many seconds that took."""
    start = time.perf_counter()
    forward = case.forward or models.forward(case.config)
    step = jax.jit(models.make_step(forward, case.update), donate_argnums=0)
    state = models.abstract_state(models.plain(case.config))
    batch = jax.eval_shape(lambda: models.example(case.config, case.batch))
    return step.lower(state, batch).compile(), time.perf_counter() - start


def _time(rows: Rows, case: Case, states: _States, tiny: bool) -> dict[str, Any]:
    """The figures of one case."""
    compiled, compile_secs = compile_step(case)
    batch = models.example(case.config, case.batch)
    state, loss = compiled(states.copy(case), batch)
    first_loss = float(loss)
    difference = _difference(rows, case.reference, first_loss)

    def advance() -> None:
        nonlocal state, loss
        state, loss = compiled(state, batch)

    timing = time_steps(
        advance, lambda: jax.block_until_ready((state, loss)), TINY_SECS if tiny else SECS
    )
    return {
        **timing._asdict(),
        "batch": case.batch,
        "examples_per_sec": 1e3 * case.batch / timing.ms,
        **_memory(compiled),
        "compile_secs": compile_secs,
        "loss": first_loss,
        **({} if difference is None else {"loss_difference": difference}),
    }


def _memory(compiled: Any) -> dict[str, float | None]:
    """What a program takes by XLA's account, which not every backend keeps."""
    memory = compiled.memory_analysis()
    if memory is None:
        return {"memory_gb": None, "temporary_gb": None}
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "memory_gb": (held + memory.temp_size_in_bytes) / 1e9,
        "temporary_gb": memory.temp_size_in_bytes / 1e9,
    }


def _difference(rows: Rows, reference: str | None, loss: float) -> float | None:
    """How far a first loss is from that of the row it is compared with, relative."""
    values = None if reference is None else rows.values(reference)
    if values is None:
        return None
    difference = abs(loss - values["loss"]) / abs(values["loss"])
    if not difference <= LOSS_TOLERANCE:  # a NaN too
        raise WrongAnswer(
            f"the first loss is {loss:.6g}, and that of {reference!r} {values['loss']:.6g}: they "
            f"may differ by {LOSS_TOLERANCE:g}"
        )
    return difference
