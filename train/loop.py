"""The story of a run, top to bottom."""

import dataclasses
from typing import Any

import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

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
from train.mesh import check_fits, device_mesh, local_rows, put_batch
from train.metrics import MetricsWriter, write_scores
from train.optimizer import make_optimizer
from train.plots import plot_curves
from train.processes import barrier, is_first
from train.profile import Profile, Span
from train.progress import RunProgress, describe
from train.state import abstract_state, init_state
from train.step import make_eval_step, make_train_step
from train.tasks import make_task
from train.throughput import Throughput


def train(
    cfg: ml_collections.ConfigDict, workdir: str | epath.Path, profile_steps: Span | None = None
) -> dict[str, float]:
    """Trains a run to its end, or goes on with it where its workdir says it stopped.

    Args:
      cfg: the run's config.
      workdir: where metrics.jsonl, events/, checkpoints/, test_scores.npz, curves.png and, of a run
        on text, tokenizer.json are written; a local folder or a gs:// address.
      profile_steps: steps of this start, counted from 1, that are traced into profile/.

    Returns:
      The last line of metrics.jsonl: step, test/loss, test/accuracy, test/nfe and the like.

    Raises:
      BadInput: a config, workdir or data set that is refused.
    """
    config = from_config_dict(cfg)
    mesh = device_mesh(config.mesh)
    check_fits(config, mesh)
    path = check_workdir(workdir, cfg)
    splits = load_splits(config, read_tokenizer(path))
    task = make_task(config, splits["train"])
    barrier("the workdir was read")  # the first process writes into it from here on
    if is_first():
        record_run(path, cfg, splits["train"])
    barrier("the run is recorded")
    optimizer = make_optimizer(config.optimizer, config.train_steps)

    with Checkpoints(path, config.checkpoint) as checkpoints:
        state = checkpoints.restore(abstract_state(config, optimizer, mesh))
        state = init_state(config, optimizer, mesh) if state is None else state
        start = int(state.step)
        batches = train_batches(
            splits["train"],
            config.batch_size,
            config.train_steps,
            config.seed,
            start,
            local_rows(mesh, config.batch_size),
            config.data.repeats,
            config.data.workers,
        )
        train_step = make_train_step(config, task, mesh)
        eval_step = make_eval_step(config.model, task, mesh)

        def score_split(name: str, params: Any) -> dict[str, np.ndarray]:
            size, workers = config.eval.batch_size, config.data.workers
            return score(params, splits[name], size, mesh, eval_step, workers)

        first = is_first()
        with (
            MetricsWriter(path, start, enabled=first) as writer,
            RunProgress(start, config.train_steps, visible=first) as progress,
            Profile(path, profile_steps, start, config.train_steps, progress.note) as profile,
        ):
            progress.note(_headline(config, mesh, state, start, path))
            throughput = Throughput(config, task, mesh, start)
            for step, batch in zip(range(start + 1, config.train_steps + 1), batches, strict=True):
                with profile.at(step):
                    state, metrics = train_step(state, put_batch(mesh, batch, config.batch_size))
                throughput.flush(writer, progress)
                throughput.hold(step, metrics)
                if profile.finish(step, metrics):
                    throughput.restart_clock(step)  # the trace was being written
                progress.advance(step)
                if step % config.eval.every_steps == 0 or step == config.train_steps:
                    throughput.flush(writer, progress)
                    scores = _named(
                        "val", summarise(task, score_split("validation", state.eval_params))
                    )
                    writer.write(step, scores)
                    progress.note(f"step {step:>6}  validation  {describe(scores)}")
                    throughput.restart_clock(step)
                if step % config.checkpoint.every_steps == 0 or step == config.train_steps:
                    throughput.flush(writer, progress)  # a resume goes on behind what is written
                    writer.flush()
                    checkpoints.save(state, step)
            scores = score_split("test", state.eval_params)
            if first:
                write_scores(path, scores)
            test = _named("test", summarise(task, scores))
            writer.write(config.train_steps, test)
            progress.note(f"test  {describe(test)}")
    if first:
        progress.note(f"curves: {plot_curves(path)}")
    return {"step": config.train_steps, **test}


def _named(split: str, metrics: dict[str, float]) -> dict[str, float]:
    return {f"{split}/{name}": value for name, value in metrics.items()}


def _headline(config: RunConfig, mesh: Mesh, state: Any, start: int, path: epath.Path) -> str:
    depth = dataclasses.asdict(config.model.depth)
    settings = ", ".join(f"{name} {value}" for name, value in depth.items() if value is not None)
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    resumed = f"going on from step {start}" if start else "from the start"
    return (
        f"{path}: {count_parameters(state.params):,} parameters, {settings}, "
        f"{mesh.size} {mesh.devices.flat[0].platform} device(s) ({sizes}), {resumed}"
    )
