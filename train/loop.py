"""The story of a run, top to bottom."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from train.checkpoint.initial import origin_lines
from train.checkpoint.parameters import count_parameters
from train.checkpoint.workdir import has_vanished, recorded_values
from train.config.border import Cfg, from_config_dict
from train.config.modules import import_modules, warn_of_missing
from train.config.run import RunConfig
from train.data.pipeline import Position
from train.data.sizes import with_sizes
from train.devices.mesh import put_batch
from train.devices.processes import is_primary
from train.divergence import Diverged, SkipMonitor, first_skipped, given_up, rolled_back
from train.errors import RunError, Stopped, warn
from train.logs.health import find_warnings
from train.logs.run_log import RunLog
from train.logs.tracing import Span
from train.programs import Programs
from train.refinement import make_refine
from train.run import Run, prepare_run
from train.scores import summarise
from train.startup import note
from train.state import TrainState


def train(
    config: RunConfig | Cfg,
    workdir: str | epath.Path,
    traced: Span | None = None,
    programs: Programs | None = None,
) -> dict[str, float]:
    """Trains a run to its end, or resumes it where its workdir says that it stopped.

    A run that was interrupted, in whatever way, ends as one that was not: bit for bit on the same
    devices with the same versions, apart from times and speeds. SIGTERM and SIGINT stop it after
    the current step.

    Args:
      config: the run's config, or the ConfigDict that a file of configs/ returns.
      workdir: where metrics.jsonl, events/, checkpoints/, test_scores.npz, curves.png and, for a
        run on text, tokenizer.json are written; a local folder or a gs:// address.
      traced: the steps to trace into profile/, counted from 1 at this start.
      programs: compiled for earlier runs, and used again; those of this run are added.

    Returns:
      The last line of metrics.jsonl: step, test/loss, test/accuracy, test/nfe and the like.

    Raises:
      BadInput: a config, workdir or data set that is refused.
      Stopped: a signal came; the state is saved, and the same call resumes the run.
      RunError: the run diverged too often, or its last state cannot be saved.
    """
    # A ConfigDict ends here. Its caller wrote it, so its modules may run.
    if not isinstance(config, RunConfig):
        modules = import_modules(config.get("modules"))
        changes = {"modules": modules} if modules else {}
        changes = with_sizes(config, changes, lambda: recorded_values(workdir))
        config = from_config_dict(config, changes)
    warn_of_missing("config.modules", config.modules)

    with prepare_run(config, workdir, programs or Programs()) as run:
        state, start = run.restore()
        while True:
            try:
                return _train_from(run, state, start, traced)
            except Diverged as diverged:
                before = _resume_before(run, start, diverged)

            # Outside of the `except`, where the exception holds a state: there is memory for one.
            state, start = _roll_back(run, start, before)
            traced = None


def _train_from(
    run: Run, state: TrainState, start: Position, traced: Span | None
) -> dict[str, float]:
    """Trains from a position in the data to the end of the run, and tests the result."""
    run = run.at(start.step)
    config, steps = run.config, range(start.step + 1, run.config.train_steps + 1)

    log = RunLog(run.path, config, run.task, run.mesh, start_step=start.step, traced=traced)

    with log:
        log.start(run.mesh, count_parameters(state.params), start.step, run.splits)
        log.note(origin_lines(run.saver.initial, run.base, is_new=start.step == 0))
        monitor = SkipMonitor(config.guard, log.skipped)
        if run.stop_requested():
            raise Stopped(f"{run.path} is at step {start.step}; the same command resumes it")

        if steps:
            note("compiling the train step")
        for step, rows in zip(steps, run.batches(start), strict=True):
            # The step is dispatched before the metrics of the last one are read.
            batch = put_batch(run.mesh, rows, config.batch_size)
            with log.tracing(step):
                state, metrics = run.train_step(state, batch)
            log.train(step, metrics)

            due = run.schedule.due(step, stop=run.stop_requested())

            # Too many bad batches in a row: the caller rolls back.
            if monitor.exceeded(step, metrics, wait=due.evaluate or due.save):
                log.flush()
                raise Diverged(step, batch, metrics, state)

            if step in run.config.model.depth.refine_at:
                state, run = _refine(run, log, step, state)

            scores = _validate(run, log, step, state, metrics) if due.evaluate else {}

            # Metrics reach the disk before the checkpoint that follows them.
            if due.save:
                log.flush()
                position = Position(step, start.shuffle)
                run.saver.save(state, position, scores, wait=due.last or due.stop)

            if due.stop:
                raise Stopped(f"{run.path} is saved at step {step}; the same command resumes it")

        log.write_pending()
        scores = run.score("test", state)
        tested = log.test(config.train_steps, summarise(run.task, scores))
        log.finish(scores)

    return {"step": config.train_steps, **tested}


def _refine(run: Run, log: RunLog, step: int, state: TrainState) -> tuple[TrainState, Run]:
    """Returns the state with refined weights over depth, and the run that trains them."""
    state = make_refine(run.config, run.optimizer, run.mesh, step)(state)
    run = run.at(step)
    log.refined(step, run.config.model.depth, count_parameters(state.params))
    return state, run


def _validate(
    run: Run, log: RunLog, step: int, state: TrainState, metrics: Mapping[str, Any]
) -> dict[str, float]:
    """Scores the validation split, and logs its metrics and what seems wrong with the run."""
    log.write_pending()
    scores = run.score("validation", state)
    warnings = find_warnings(run.config.model, metrics, scores)
    return log.validation(step, summarise(run.task, scores) | run.recovery(state), warnings)


def _resume_before(run: Run, start: Position, diverged: Diverged) -> int:
    """Returns the step before which a diverged run resumes; raises RunError after too many."""
    if start.shuffle >= run.config.guard.max_rollbacks:
        raise given_up(diverged, run, start.shuffle)

    if is_primary():
        warn(rolled_back(diverged, start.shuffle + 1, run.config.guard.max_rollbacks))
    return first_skipped(diverged)


def _roll_back(run: Run, start: Position, before: int) -> tuple[TrainState, Position]:
    """Returns the newest sound state from before a step, and another order of the data after it.

    If no checkpoint is that old, the newest one does: its weights are the same, as every batch
    since that step was skipped.
    """
    run.saver.wait()
    if has_vanished(run.path):
        raise RunError(f"the run diverged, and {run.path} with its checkpoints has vanished")

    state, position = run.restore(before)
    guard = dataclasses.replace(state.guard, consecutive=0 * state.guard.consecutive)
    return dataclasses.replace(state, guard=guard), Position(position.step, start.shuffle + 1)
