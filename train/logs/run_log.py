"""The log of a run: everything that watches it while it trains."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh

from odeformer import DepthConfig
from train.config.run import RunConfig
from train.data.split import Split
from train.data.summary import describe_data, describe_model
from train.devices.processes import is_primary
from train.errors import RunError, warn
from train.logs.curves import plot_curves
from train.logs.health import describe_warnings
from train.logs.metrics import MetricsWriter, read_metrics, write_scores
from train.logs.progress import RunProgress, describe
from train.logs.throughput import Throughput
from train.logs.tracing import Span, Trace
from train.tasks.task import Task


class RunLog:
    """Metrics, TensorBoard events, progress, throughput, traces and curves of a run.

    The metrics of a training step are fetched after the next step was dispatched, so that the
    devices never wait for the host. Only the first process prints and writes.
    """

    def __init__(
        self,
        path: epath.Path,
        config: RunConfig,
        task: Task,
        mesh: Mesh,
        start_step: int,
        traced: Span | None = None,
    ):
        """Opens the files; the log is a context, which closes them.

        Args:
          path: of the workdir.
          task: to be learnt.
          start_step: steps that are done already.
          traced: steps of this start to trace.

        Raises:
          BadInput: steps to trace that this start does not take.
        """
        primary = is_primary()
        self._path, self._config, self._primary = path, config, primary
        self._progress = RunProgress(start_step, config.train_steps, visible=primary)
        self._trace = Trace(path, traced, start_step, config.train_steps, self._progress.note)
        self._writer = MetricsWriter(path, start_step, enabled=primary)
        self._throughput = Throughput(config, task, mesh, start_step)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "RunLog":
        # Closed in reverse: a trace that is written at the end is still reported by the progress.
        for part in (self._progress, self._trace, self._writer):
            self._stack.enter_context(part)

        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def start(
        self, mesh: Mesh, parameters: int, start_step: int, splits: Mapping[str, Split]
    ) -> None:
        """Prints what is trained, so many parameters, on what data, and on what devices."""
        depth = dataclasses.asdict(self._config.model.depth)
        settings = ", ".join(f"{key} {value}" for key, value in depth.items() if value is not None)
        sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        rank = self._config.lora.rank
        what = "parameters" if rank is None else f"trained parameters (adapters of rank {rank})"
        resumed = f"resumed at step {start_step}" if start_step else "from the start"

        self._progress.note(
            f"{self._path}: {parameters:,} {what}, {settings}, {mesh.size} "
            f"{mesh.devices.flat[0].platform} device(s) ({sizes}), {resumed}"
        )

        # Some configs take these sizes from what the user's files hold.
        config = self._config
        self._progress.note(
            f"{describe_model(config.model)}; {config.train_steps:,} steps of {config.batch_size} "
            f"examples, {config.optimizer.warmup_steps:,} of them to warm up"
        )
        self.note(describe_data(config.data, splits))

    def note(self, lines: Sequence[str]) -> None:
        """Prints lines."""
        for line in lines:
            self._progress.note(line)

    def tracing(self, step: int) -> contextlib.AbstractContextManager[None]:
        """Returns a context in which a training step is dispatched."""
        return self._trace.step(step)

    def train(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of the step that was dispatched, and writes those of the one before."""
        self.write_pending()
        self._throughput.hold(step, metrics)

        # Writing a trace takes time in which nothing is trained.
        if self._trace.finish(step, metrics):
            self._throughput.restart_clock(step)

        self._progress.advance(step)

    def skipped(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Reports a skipped batch, and writes its step's metrics unless they are due anyway."""
        values = {f"train/{name}": float(value) for name, value in metrics.items()}

        # Where they are due they are held, and would be written twice.
        if not self._throughput.is_due(step):
            self._writer.write(step, values)

        self._progress.note(
            f"step {step:>6}  batch skipped: loss {values['train/loss']:.4g}, gradient norm "
            f"{values['train/grad_norm']:.4g} ({values['train/skipped']:.0f} so far)"
        )

    def write_pending(self) -> None:
        """Writes and shows the metrics that are held, if they are due."""
        # Before an evaluation, too: its time does not count, and if it fails no line is lost.
        pending = self._throughput.take()
        if pending is not None:
            self._writer.write(*pending)
            self._progress.show(*pending)

    def refined(self, step: int, depth: DepthConfig, parameters: int) -> None:
        """Reports that the weights over depth were refined after a step, and writes it."""
        self.write_pending()
        numbers = {"depth/sets": depth.sets, "depth/groups": depth.groups}
        self._writer.write(step, numbers | {"depth/parameters": parameters})
        self._progress.note(
            f"step {step:>6}  weights over depth refined to {depth.sets} sets of basis "
            f"{depth.basis!r}, {depth.groups} groups of length {depth.length:g}, "
            f"{parameters:,} parameters"
        )

        # Refining, and compiling what follows, is no training either.
        self._throughput.restart_clock(step)

    def validation(
        self, step: int, metrics: Mapping[str, float], warnings: Mapping[str, float]
    ) -> dict[str, float]:
        """Writes the metrics of the validation split, and returns them with the split's name.

        Args:
          step: after which it was scored.
          warnings: of `find_warnings`, written with them.
        """
        scores = self._write(step, "val", f"step {step:>6}  validation", metrics, warnings)

        # Nor does evaluation count as time in which the run trains.
        self._throughput.restart_clock(step)
        return scores

    def test(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Writes the metrics of the test split, and returns them with the split's name."""
        return self._write(step, "test", "test", metrics)

    def finish(self, scores: Mapping[str, np.ndarray]) -> None:
        """Warns of a run that learnt nothing, writes the test examples' scores, draws the curves.

        Raises:
          RunError: the workdir can no longer be written.
        """
        if not self._primary:
            return

        try:
            self._warn_at_end()
            write_scores(self._path, scores)
            self._progress.note(f"curves: {plot_curves(self._path)}")
        except OSError as error:
            raise RunError(
                f"{self._path} is trained and saved, but its scores cannot be written ({error}): "
                "the same command tests it again"
            ) from error

    def flush(self) -> None:
        """Writes everything up to the newest step: to be called before the checkpoint of it."""
        self.write_pending()
        self._writer.flush()

    def _write(
        self,
        step: int,
        split: str,
        title: str,
        metrics: Mapping[str, float],
        warnings: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        named = {f"{split}/{name}": value for name, value in metrics.items()}
        self._writer.write(step, named | (dict(warnings) if warnings else {}))
        self._progress.note(f"{title}  {describe(named)}")
        return named

    def _warn_at_end(self) -> None:
        """Warns of what the last evaluation found."""
        # From the file: an earlier start may have made the evaluation.
        for line in read_metrics(self._path):
            if line["step"] == self._config.train_steps and "val/loss" in line:
                for text in describe_warnings(self._config.model, line):
                    warn(f"{self._path}: {text}")
