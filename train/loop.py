"""The story of a run, top to bottom."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from train.checkpoint.metadata import Record, check_origin
from train.checkpoint.restore import count_parameters, restore_newest
from train.checkpoint.saver import CannotSave, Saver
from train.checkpoint.workdir import (
    check_workdir,
    find_spare,
    has_vanished,
    locked,
    read_tokenizer,
    record_run,
    saved_steps,
)
from train.config.paths import with_absolute_paths
from train.config.run import RunConfig, from_config_dict, to_config_dict
from train.data.pipeline import BEGINNING, Position, check_batch_size, train_batches
from train.data.sources import load_splits
from train.data.split import Split
from train.devices.mesh import check_fits, device_mesh, local_rows, put_batch
from train.devices.processes import AnyProcess, barrier, is_first
from train.divergence import Diverged, first_skipped, report
from train.errors import BadInput, RunError, Stopped, warn
from train.guard import Watch
from train.logs.curves import plot_curves
from train.logs.health import describe_warnings, find_warnings
from train.logs.metrics import MetricsWriter, read_metrics, write_scores
from train.logs.progress import RunProgress, describe
from train.logs.throughput import Throughput
from train.logs.tracing import Profile, Span
from train.optimizer import make_optimizer, make_schedule
from train.scores import score, summarise
from train.signals import StopSignals
from train.state import TrainState, abstract_state, init_state
from train.step import make_eval_step, make_train_step
from train.tasks import make_task
from train.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same from a run's first step to its last."""

    cfg: ml_collections.ConfigDict
    config: RunConfig
    path: epath.Path
    spare: epath.Path | None  # where it moves when its path takes no more
    mesh: Mesh
    splits: Mapping[str, Split]
    task: Task
    optimizer: optax.GradientTransformation
    saver: Saver
    is_told_to_stop: Callable[[], bool]
    train_step: Any
    eval_step: Any


def train(
    cfg: ml_collections.ConfigDict, workdir: str | epath.Path, profile_steps: Span | None = None
) -> dict[str, float]:
    """Trains a run to its end, or goes on with it where its workdir says it stopped.

    A run that was interrupted, in whatever way, ends as one that was not: bit for bit on the same
    devices with the same versions, times and speeds apart. SIGTERM and SIGINT stop it behind the
    step it is at.

    Args:
      cfg: the run's config.
      workdir: where metrics.jsonl, events/, checkpoints/, test_scores.npz, curves.png and, of a run
        on text, tokenizer.json are written; a local folder or a gs:// address.
      profile_steps: steps of this start, counted from 1, that are traced into profile/.

    Returns:
      The last line of metrics.jsonl: step, test/loss, test/accuracy, test/nfe and the like.

    Raises:
      BadInput: a config, workdir or data set that is refused.
      Stopped: a signal came; the state is saved, and the same call goes on.
      RunError: the run diverged too often, or its last state cannot be saved.
    """
    config = from_config_dict(cfg)
    cfg = to_config_dict(with_absolute_paths(cfg.to_dict()))  # as it is stored
    mesh = device_mesh(config.mesh)
    check_fits(config, mesh)
    path = check_workdir(workdir, cfg)
    spare = find_spare(path, cfg, config.checkpoint.spare_dir)
    splits = load_splits(config, read_tokenizer(path))
    task = make_task(config, splits["train"])
    check_batch_size(len(splits["train"]), config.batch_size, config.data.repeats)
    with StopSignals() as signals, locked(path):
        check_workdir(path, cfg)  # what another trainer left while the data were read
        barrier("the workdir was read")  # the first process writes into it from here on
        if is_first():
            record_run(path, cfg, splits["train"])
        barrier("the run is recorded")
        examples, any_process = len(splits["train"]), AnyProcess()
        with Saver(path, config.checkpoint, cfg.to_dict(), examples, config.train_steps) as saver:
            run = _Run(
                cfg,
                config,
                path,
                spare,
                mesh,
                splits,
                task,
                make_optimizer(config.optimizer, config.train_steps),
                saver,
                lambda: any_process(signals.received is not None),
                make_train_step(config, task, mesh),
                make_eval_step(config.model, task, mesh),
            )
            state, start = _restore(run)
            while True:
                try:
                    return _train_from(run, state, start, profile_steps)
                except Diverged as diverged:
                    before = _bound_of_return(run, start, diverged)
                # Out of the exception's reach, which holds a state: there is room for one.
                state, start = _go_back(run, start, before)
                profile_steps = None


def _restore(run: _Run, before: int | None = None) -> tuple[TrainState, Position]:
    """The newest sound state, or the initial one, and its place in the data."""
    target = abstract_state(run.config, run.optimizer, run.mesh)
    restored = restore_newest(run.path, target, before)
    if restored is None:
        state, start = init_state(run.config, run.optimizer, run.mesh), BEGINNING
    else:
        state, record = restored
        start = record.position
        check_origin(record, run.path, len(run.splits["train"]))
        if before is None and is_first():
            _warn_of_schedule(run, record)
    run.saver.set_aside(start.step)
    return state, start


def _warn_of_schedule(run: _Run, record: Record) -> None:
    """Warns of a learning rate that jumps, as the cosine of a run spans all its steps."""
    config, step, steps = run.config, record.position.step, record.config["train_steps"]
    was, now = (
        np.asarray(make_schedule(config.optimizer, n)(step)) for n in (steps, config.train_steps)
    )
    if step < config.train_steps and steps != config.train_steps:
        warn(
            f"{run.path}: config.train_steps was {steps} and is {config.train_steps}, and the "
            f"learning rate's cosine spans all of them: at step {step}, where it was {was:.3g}, it "
            f"is {now:.3g} now. For the schedule of one long run, start it in another --workdir"
        )


def _bound_of_return(run: _Run, start: Position, diverged: Diverged) -> int:
    """The step before which a run goes on from a checkpoint, if it may go back once more."""
    returns, examples = run.config.guard.returns, len(run.splits["train"])
    if start.order >= returns:
        told = report(diverged, run.path, run.config, run.task, run.mesh, examples, start.order)
        raise RunError(
            f"the run diverged, after {returns} returns to a checkpoint (config.guard.returns)\n"
            f"{told}\nTake a smaller optimizer.learning_rate, say, and another --workdir"
        )
    if is_first():
        warn(
            f"{int(diverged.metrics['skipped_in_a_row'])} batches were skipped in a row up to step "
            f"{diverged.step}: the run goes back to a checkpoint, and on in another order of the "
            f"data (return {start.order + 1} of {returns})"
        )
    return first_skipped(diverged)


def _go_back(run: _Run, start: Position, before: int) -> tuple[TrainState, Position]:
    """The newest sound state from before a step, and another order of the data behind it.

    Where none lies before it, the newest: its weights are the same, as every batch since that step
    was skipped.
    """
    run.saver.wait()
    if has_vanished(run.path):
        raise RunError(f"the run diverged, and {run.path} with its checkpoints has vanished")
    state, position = _restore(run, before)
    guard = dataclasses.replace(state.guard, in_a_row=0 * state.guard.in_a_row)
    state = dataclasses.replace(state, guard=guard)
    return state, Position(position.step, start.order + 1)


def _train_from(
    run: _Run, state: TrainState, start: Position, profile_steps: Span | None
) -> dict[str, float]:
    """Trains from a place in the data to the end of the run, and tests the result."""
    config, mesh, first = run.config, run.mesh, is_first()
    with (
        RunProgress(start.step, config.train_steps, visible=first) as progress,
        Profile(run.path, profile_steps, start.step, config.train_steps, progress.note) as profile,
        MetricsWriter(run.path, start.step, enabled=first) as writer,
    ):
        progress.note(_headline(run, state, start))
        throughput = Throughput(config, run.task, mesh, start.step)
        watch = Watch(config.guard, _tell_of_skipped(throughput, writer, progress))
        batches = train_batches(
            run.splits["train"],
            config.batch_size,
            config.train_steps,
            config.seed,
            start,
            local_rows(mesh, config.batch_size),
            config.data.repeats,
            config.data.workers,
        )
        if run.is_told_to_stop():
            raise Stopped(f"{run.path} stands at step {start.step}; the same command goes on")
        for step, rows in zip(range(start.step + 1, config.train_steps + 1), batches, strict=True):
            batch = put_batch(mesh, rows, config.batch_size)
            with profile.at(step):
                state, metrics = run.train_step(state, batch)
            throughput.flush(writer, progress)
            throughput.hold(step, metrics)
            if profile.finish(step, metrics):
                throughput.restart_clock(step)  # the trace was being written
            progress.advance(step)
            is_stopping, is_last = run.is_told_to_stop(), step == config.train_steps
            is_evaluated = is_last or step % config.eval.every_steps == 0
            is_saved = is_stopping or run.saver.is_due(step)
            if watch.look(step, metrics, now=is_evaluated or is_saved):
                throughput.flush(writer, progress)
                raise Diverged(step, batch, metrics, state)
            scores = {}
            if is_evaluated:
                throughput.flush(writer, progress)
                each = _score(run, "validation", state)
                scores = _named("val", summarise(run.task, each))
                writer.write(step, scores | find_warnings(config.model, metrics, each))
                progress.note(f"step {step:>6}  validation  {describe(scores)}")
                throughput.restart_clock(step)
            if is_saved:
                throughput.flush(writer, progress)  # a resume goes on behind what is written
                writer.flush()
                save = run.saver.finish if is_stopping or is_last else run.saver.save
                try:
                    save(state, Position(step, start.order), scores)
                except CannotSave as error:
                    _move(run, writer, state, Position(step, start.order), scores, error)
            if is_stopping and not is_last:
                raise Stopped(f"{run.path} is saved at step {step}; the same command goes on")
        scores = _score(run, "test", state)
        test = _named("test", summarise(run.task, scores))
        writer.write(config.train_steps, test)
        progress.note(f"test  {describe(test)}")
        try:
            if first:
                _warn_at_end(run)
                write_scores(run.path, scores)
                progress.note(f"curves: {plot_curves(run.path)}")
        except OSError as error:
            raise RunError(
                f"{run.path} is trained and saved, but its scores cannot be written ({error}): the "
                "same command tests it again"
            ) from error
    return {"step": config.train_steps, **test}


def _warn_at_end(run: _Run) -> None:
    """Warns of what its last evaluation found, which an earlier start may have made."""
    for line in read_metrics(run.path):
        if line["step"] == run.config.train_steps and "val/loss" in line:
            for text in describe_warnings(run.config.model, line):
                warn(f"{run.path}: {text}")


def _score(run: _Run, split: str, state: TrainState) -> dict[str, np.ndarray]:
    size, workers = run.config.eval.batch_size, run.config.data.workers
    return score(state.eval_params, run.splits[split], size, run.mesh, run.eval_step, workers)


def _move(
    run: _Run,
    writer: MetricsWriter,
    state: TrainState,
    position: Position,
    scores: dict[str, float],
    error: CannotSave,
) -> None:
    """Saves a run in its spare folder, and stops it."""
    spare = run.spare
    if spare is None:
        raise error
    try:
        with locked(spare):
            check_workdir(spare, run.cfg)  # another run may have moved there
            further = [step for step in saved_steps(spare) if step > position.step]
            if further:
                raise RunError(f"{spare} holds a checkpoint of step {further[-1]}")
            barrier("the spare folder was read")
            if is_first():
                record_run(spare, run.cfg, run.splits["train"])
            barrier("the run is recorded in its spare folder")
            writer.copy_to(spare)
            with run.saver.elsewhere(spare) as saver:
                saver.finish(state, position, scores)
    except (BadInput, OSError, RunError) as second:
        raise RunError(f"{error} Nor does the spare folder: {second}") from second
    raise Stopped(
        f"{error} Step {position.step} is saved in {spare}: go on with --workdir={spare}"
    ) from error


def _tell_of_skipped(
    throughput: Throughput, writer: MetricsWriter, progress: RunProgress
) -> Callable[[int, Mapping[str, Any]], None]:
    """Returns what tells of a skipped batch, and writes its step's metrics where none are due."""

    def tell(step: int, metrics: Mapping[str, Any]) -> None:
        values = {f"train/{name}": float(value) for name, value in metrics.items()}
        if not throughput.is_due(step):
            writer.write(step, values)
        progress.note(
            f"step {step:>6}  batch skipped: loss {values['train/loss']:.4g}, gradient norm "
            f"{values['train/grad_norm']:.4g} ({values['train/skipped']:.0f} so far)"
        )

    return tell


def _named(split: str, metrics: dict[str, float]) -> dict[str, float]:
    return {f"{split}/{name}": value for name, value in metrics.items()}


def _headline(run: _Run, state: TrainState, start: Position) -> str:
    depth = dataclasses.asdict(run.config.model.depth)
    settings = ", ".join(f"{name} {value}" for name, value in depth.items() if value is not None)
    sizes = " x ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items())
    resumed = f"going on from step {start.step}" if start.step else "from the start"
    return (
        f"{run.path}: {count_parameters(state.params):,} parameters, {settings}, "
        f"{run.mesh.size} {run.mesh.devices.flat[0].platform} device(s) ({sizes}), {resumed}"
    )
