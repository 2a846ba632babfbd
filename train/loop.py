"""The story of a run, top to bottom."""

import dataclasses
import time
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from train.checkpoint import (
    Checkpoints,
    check_workdir,
    count_parameters,
    read_tokenizer,
    record_run,
)
from train.config import RunConfig, from_config_dict
from train.data.pipeline import train_batches
from train.data.sources import load_splits
from train.evaluate import score, summarise
from train.mesh import check_batch, device_mesh, put_batch, replicated
from train.metrics import MetricsWriter, write_scores
from train.optimizer import make_optimizer
from train.plots import plot_curves
from train.progress import RunProgress, describe
from train.state import abstract_state, init_state
from train.step import make_eval_step, make_train_step
from train.tasks import make_task
from train.tasks.task import Task


def train(cfg: ml_collections.ConfigDict, workdir: str | epath.Path) -> dict[str, float]:
    """Trains a run to its end, or goes on with it where its workdir says it stopped.

    Args:
      cfg: the run's config.
      workdir: where metrics.jsonl, events/, checkpoints/, test_scores.npz, curves.png and, of a run
        on text, tokenizer.json are written; a local folder or a gs:// address.

    Returns:
      The last line of metrics.jsonl: step, test/loss, test/accuracy, test/nfe and the like.

    Raises:
      BadInput: a config, workdir or data set that is refused.
    """
    config = from_config_dict(cfg)
    mesh = device_mesh(config.mesh)
    check_batch(mesh, config.batch_size)
    path = check_workdir(workdir, cfg)
    splits = load_splits(config, read_tokenizer(path))
    task = make_task(config, splits["train"])
    record_run(path, cfg, splits["train"])
    optimizer = make_optimizer(config.optimizer, config.train_steps)

    with Checkpoints(path, config.checkpoint) as checkpoints:
        state = checkpoints.restore(abstract_state(config, optimizer, replicated(mesh)))
        state = init_state(config, optimizer, replicated(mesh)) if state is None else state
        start = int(state.step)
        batches = train_batches(
            splits["train"],
            config.batch_size,
            config.train_steps,
            config.seed,
            start,
            jax.process_index(),
            jax.process_count(),
            config.data.repeats,
            config.data.workers,
        )
        train_step = make_train_step(config, task, mesh)
        eval_step = make_eval_step(config.model, task, mesh)

        def score_split(name: str, params: Any) -> dict[str, np.ndarray]:
            size, workers = config.eval.batch_size, config.data.workers
            return score(params, splits[name], size, mesh, eval_step, workers)

        first = jax.process_index() == 0
        with (
            MetricsWriter(path, start) as writer,
            RunProgress(start, config.train_steps, visible=first) as progress,
        ):
            progress.note(_headline(config, state, start, path))
            pending = _Pending(config, task, start)
            for step, batch in zip(range(start + 1, config.train_steps + 1), batches, strict=True):
                state, metrics = train_step(state, put_batch(mesh, batch))
                pending.flush(writer, progress)
                pending.hold(step, metrics)
                progress.advance(step)
                if step % config.eval.every_steps == 0 or step == config.train_steps:
                    pending.flush(writer, progress)
                    scores = _named(
                        "val", summarise(task, score_split("validation", state.eval_params))
                    )
                    writer.write(step, scores)
                    progress.note(f"step {step:>6}  validation  {describe(scores)}")
                    pending.restart_clock(step)
                if step % config.checkpoint.every_steps == 0 or step == config.train_steps:
                    pending.flush(writer, progress)  # a resume goes on behind what is written
                    checkpoints.save(state, step)
            scores = score_split("test", state.eval_params)
            if first:
                write_scores(path, scores)
            test = _named("test", summarise(task, scores))
            writer.write(config.train_steps, test)
            progress.note(f"test  {describe(test)}")
    progress.note(f"curves: {plot_curves(path)}")
    return {"step": config.train_steps, **test}


def _named(split: str, metrics: dict[str, float]) -> dict[str, float]:
    return {f"{split}/{name}": value for name, value in metrics.items()}


class _Pending:
    """The newest train metrics, held until the next step is on its way to the device."""

    def __init__(self, config: RunConfig, task: Task, start: int):
        self._config, self._task = config, task
        self._held: tuple[int, dict[str, Any]] | None = None
        self._compiled = False
        self.restart_clock(start)

    def restart_clock(self, step: int) -> None:
        """Starts counting examples a second anew, behind `step` steps."""
        self._clock = (step, time.perf_counter())

    def hold(self, step: int, metrics: dict[str, Any]) -> None:
        """Keeps the metrics of a step that is due to be logged."""
        if step % self._config.log.every_steps == 0 or not self._compiled:
            self._held = (step, metrics)

    def flush(self, writer: MetricsWriter, progress: RunProgress) -> None:
        """Fetches, writes and shows what is held."""
        if self._held is None:
            return
        step, metrics = self._held
        values = {f"train/{name}": float(value) for name, value in metrics.items()}
        since_step, since = self._clock
        now = time.perf_counter()
        if self._compiled and step > since_step:
            steps_per_sec = (step - since_step) / (now - since)
            units = self._config.batch_size * self._task.units_per_example
            values[f"train/{self._task.unit}_per_sec"] = units * steps_per_sec
            values["train/steps_per_sec"] = steps_per_sec
        self._held, self._clock, self._compiled = None, (step, now), True
        writer.write(step, values)
        progress.show(step, values)


def _headline(config: RunConfig, state: Any, start: int, path: epath.Path) -> str:
    depth = dataclasses.asdict(config.model.depth)
    settings = ", ".join(f"{name} {value}" for name, value in depth.items() if value is not None)
    resumed = f"going on from step {start}" if start else "from the start"
    return (
        f"{path}: {count_parameters(state.params):,} parameters, {settings}, "
        f"{jax.device_count()} {jax.devices()[0].platform} device(s), {resumed}"
    )
