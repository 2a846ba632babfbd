"""How fast a run trains: examples, steps and model FLOPs per second."""

import time
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from odeformer import flops
from train.config.run import RunConfig
from train.devices import chips
from train.tasks.task import Task


class Throughput:
    """The newest train metrics, held until the next step was dispatched, with the speed.

    train/steps_per_sec; the task's units, as train/images_per_sec; train/tflops_per_sec, model
    TFLOP/s per device; and if the device's peak is known

        train/mfu = model FLOP/s / peak FLOP/s

    Model FLOPs are those of `flops.training`: what an adjoint recomputes is time, not work. The
    peak is that of bfloat16, whatever the run computes in.
    Source of train/mfu: Chowdhery et al., 'PaLM', 2022, arXiv 2204.02311, appendix B.
    """

    def __init__(self, config: RunConfig, task: Task, mesh: Mesh, start: int):
        """Starts the clock, after `start` steps."""
        self._config, self._task = config, task
        self._devices = mesh.size

        # All devices of a mesh are of one kind.
        self._chip = chips.find(mesh.devices.flat[0].device_kind)
        self._held: tuple[int, Mapping[str, Any]] | None = None
        self._has_compiled = False
        self.restart_clock(start)

    def restart_clock(self, step: int) -> None:
        """Restarts the measurement of speed, after `step` steps."""
        self._clock = (step, time.perf_counter())

    def is_due(self, step: int) -> bool:
        """Returns whether a step's metrics are logged: the first, and every `log.every_steps`."""
        return step == 1 or step % self._config.log.every_steps == 0

    def hold(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Keeps the metrics of a step that is logged, or that compiled the program."""
        # The first step of a start is held only for the clock, which restarts when it is done.
        if self.is_due(step) or not self._has_compiled:
            self._held = (step, metrics)

    def take(self) -> tuple[int, dict[str, float]] | None:
        """Fetches what is held: its step and metrics; None if they are not to be logged."""
        if self._held is None:
            return None

        step, metrics = self._held
        values = {f"train/{name}": float(value) for name, value in metrics.items()}

        # The first step of a start takes the time of the compilation.
        since_step, since = self._clock
        now = time.perf_counter()
        if self._has_compiled and step > since_step:
            steps_per_sec = (step - since_step) / (now - since)
            values |= self._speeds(steps_per_sec, values["train/nfe"])

        self._held, self._clock, self._has_compiled = None, (step, now), True

        # An interrupted run logs the same steps as an uninterrupted one.
        return (step, values) if self.is_due(step) else None

    def _speeds(self, steps_per_sec: float, nfe: float) -> dict[str, float]:
        examples_per_sec = self._config.batch_size * steps_per_sec
        device_flops = examples_per_sec * self._example_flops(nfe) / self._devices
        units_per_sec = examples_per_sec * self._task.units_per_example
        speeds = {
            f"train/{self._task.unit}_per_sec": units_per_sec,
            "train/steps_per_sec": steps_per_sec,
            "train/tflops_per_sec": device_flops / 1e12,
        }

        if self._chip is not None:
            speeds["train/mfu"] = device_flops / self._chip.peak_flops

        return speeds

    def _example_flops(self, nfe: float) -> int:
        model = self._config.model
        if model.depth.rtol is None:
            return flops.training(model)

        # Adaptive steps evaluate all terms equally often.
        terms = len(model.terms)
        return flops.training(model, [nfe / terms] * terms)
