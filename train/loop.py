"""The story of a run, top to bottom."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from train.adapters import merge
from train.checkpoint.base_checks import check_base, check_tokenizer
from train.checkpoint.checks import check_origin, warn_of_learning_rate
from train.checkpoint.initial import begin, check_initial, origin_lines
from train.checkpoint.parameters import check_optimizer_names
from train.checkpoint.restore import count_parameters, restore_newest
from train.checkpoint.saver import Saver
from train.checkpoint.sizes import complete
from train.checkpoint.weights import read_base
from train.checkpoint.workdir import (
    check_inputs,
    check_workdir,
    has_vanished,
    locked,
    read_tokenizer,
    record_run,
)
from train.config.border import Given, from_config_dict
from train.config.modules import import_modules, warn_of_missing
from train.config.refining import at_step
from train.config.run import RunConfig
from train.data.pipeline import BEGINNING, Position, check_batch_size, train_batches
from train.devices.checks import check_run_fits
from train.devices.mesh import device_mesh, local_rows, put_batch
from train.devices.processes import AnyProcess, barrier, is_primary
from train.divergence import Diverged, SkipMonitor, first_skipped, given_up, rolled_back
from train.errors import RunError, Stopped, warn
from train.logs.health import find_warnings
from train.logs.run_log import RunLog
from train.logs.tracing import Span
from train.optimizer import make_optimizer
from train.programs import Programs, Run
from train.refinement import check_refinable, make_refine
from train.schedule import Schedule
from train.scores import score, summarise
from train.signals import StopSignals
from train.startup import note
from train.state import TrainState, expected_state
from train.tasks import make_task


def train(
    config: RunConfig | Given,
    workdir: str | epath.Path,
    traced: Span | None = None,
    programs: Programs | None = None,
) -> dict[str, float]:
    """Trains a run to its end, or resumes it where its workdir says that it stopped.

    A run that was interrupted, in whatever way, ends as one that was not: bit for bit on the same
    devices with the same versions, apart from times and speeds. SIGTERM and SIGINT stop it after
    the current step.

    Args:
      config: of the run, or the ConfigDict that a file of configs/ returns.
      workdir: where metrics.jsonl, events/, checkpoints/, test_scores.npz, curves.png and, for a
        run on text, tokenizer.json are written; a local folder or a gs:// address.
      traced: steps of this start, counted from 1, to trace into profile/.
      programs: those of earlier runs, which are used again; this run's are added.

    Returns:
      The last line of metrics.jsonl: step, test/loss, test/accuracy, test/nfe and the like.

    Raises:
      BadInput: a config, workdir or data set that is refused.
      Stopped: a signal came; the state is saved, and the same call resumes the run.
      RunError: the run diverged too often, or its last state cannot be saved.
    """
    # Here a ConfigDict ends. Its caller wrote it, so that its modules may run.
    if not isinstance(config, RunConfig):
        modules = import_modules(config.get("modules"))
        changes = complete(config, {"modules": modules} if modules else {}, workdir)
        config = from_config_dict(config, changes)
    warn_of_missing("config.modules", config.modules)

    with _prepare(config, workdir, programs or Programs()) as run:
        state, start = _restore(run)
        while True:
            try:
                return _train_from(run, state, start, traced)
            except Diverged as diverged:
                before = _resume_before(run, start, diverged)

            # Outside of the exception's scope, which holds a state: there is memory for one.
            state, start = _roll_back(run, start, before)
            traced = None


@contextlib.contextmanager
def _prepare(config: RunConfig, workdir: str | epath.Path, programs: Programs) -> Iterator[Run]:
    """Makes what a run needs, inside its locked workdir."""
    mesh = device_mesh(config.mesh)
    check_run_fits(config, mesh)
    check_optimizer_names(config)
    optimizer = make_optimizer(config.optimizer, config.train_steps, config.model.depth.layers)
    check_refinable(config, optimizer, mesh)

    path = check_workdir(workdir, config)
    base = read_base(config, mesh)
    note(f"reading the data, {config.data.name}")
    splits = programs.splits(config, read_tokenizer(path))
    task = make_task(config, splits["train"])
    check_tokenizer(config, base, splits["train"])
    check_batch_size(len(splits["train"]), config.batch_size, config.data.repeats_per_batch)
    check_initial(path, config, splits["train"])

    with StopSignals() as signals, locked(path):
        check_workdir(path, config)  # another trainer may have written while the data were read
        check_inputs(path, config, splits["train"])
        barrier("the workdir was read")  # from here on the first process writes into it
        if is_primary():
            record_run(path, config, splits["train"])
        barrier("the run is recorded")

        any_process = AnyProcess()
        with Saver(path, config, len(splits["train"]), base and base.digest) as saver:
            yield Run(
                config=config,
                path=path,
                mesh=mesh,
                splits=splits,
                task=task,
                optimizer=optimizer,
                saver=saver,
                schedule=Schedule(config, saver),
                stop_requested=lambda: any_process(signals.received is not None),
                programs=programs,
                init_state=programs.init(config, optimizer, mesh, base),
                **programs.steps(config, optimizer, task, mesh, base),
                base=base,
            )


def _restore(run: Run, before: int | None = None) -> tuple[TrainState, Position]:
    """The newest sound state, or the initial one, and its position in the data."""
    note("restoring or initialising the state")
    target = functools.partial(expected_state, run.config, run.mesh)
    restored = restore_newest(run.path, target, before)

    if restored is None:
        start = BEGINNING
        state, run.saver.initial = begin(
            run.path, run.config, run.optimizer, run.mesh, state=run.init_state(), base=run.base
        )
    else:
        state, record = restored
        start, run.saver.initial = record.position, record.initial
        check_origin(record, run.path, len(run.splits["train"]))
        check_base(record, run.base, run.config, run.path)
        if before is None and is_primary():
            warn_of_learning_rate(run.path, config=run.config, metadata=record)
            warn_of_missing(run.path, record.config.get("modules", ()))

    run.saver.retire(start.step)
    return state, start


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
        for step, rows in zip(steps, _batches(run, start), strict=True):
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
        scores = _score(run, "test", state)
        tested = log.test(config.train_steps, summarise(run.task, scores))
        log.finish(scores)

    return {"step": config.train_steps, **tested}


def _batches(run: Run, start: Position) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the batches from a position on."""
    config = run.config
    return train_batches(
        run.splits["train"],
        batch_size=config.batch_size,
        steps=config.train_steps,
        seed=config.seed,
        start=start,
        rows=local_rows(run.mesh, config.batch_size),
        repeats=config.data.repeats_per_batch,
        workers=config.data.workers,
    )


def _refine(run: Run, log: RunLog, step: int, state: TrainState) -> tuple[TrainState, Run]:
    """The state with more weights over depth, which compute what it did, and the run with it."""
    state = make_refine(run.config, run.optimizer, run.mesh, step)(state)
    run = run.at(step)
    log.refined(step, run.config.model.depth, count_parameters(state.params))
    return state, run


def _validate(
    run: Run, log: RunLog, step: int, state: TrainState, metrics: Mapping[str, Any]
) -> dict[str, float]:
    """Scores the validation split, and logs its metrics and what seems wrong with the run."""
    log.write_pending()
    scores = _score(run, "validation", state)
    warnings = find_warnings(run.config.model, metrics, scores)

    # Whether a reversible pair comes back: one batch, run backwards.
    split = run.splits["validation"]
    recovered = run.recover(_eval_params(run, state), split, run.config.batch_size)
    return log.validation(step, summarise(run.task, scores) | recovered, warnings)


def _score(run: Run, split: str, state: TrainState) -> dict[str, np.ndarray]:
    size, workers = run.config.eval.batch_size, run.config.data.workers
    params = _eval_params(run, state)
    return score(params, run.splits[split], size, run.mesh, run.eval_step, workers=workers)


def _eval_params(run: Run, state: TrainState) -> Any:
    """All parameters, adapters merged, that are evaluated: the average where the run keeps one."""
    return merge(run.config, state.eval_params, run.base and run.base.params)


def _resume_before(run: Run, start: Position, diverged: Diverged) -> int:
    """The step before which a diverged run resumes, if it may be rolled back once more."""
    if start.shuffle >= run.config.guard.max_rollbacks:
        raise given_up(
            diverged,
            run.path,
            config=at_step(run.config, diverged.step - 1),
            task=run.task,
            mesh=run.mesh,
            examples=len(run.splits["train"]),
            shuffle=start.shuffle,
            base=run.base and run.base.params,
        )

    if is_primary():
        warn(rolled_back(diverged, start.shuffle + 1, run.config.guard.max_rollbacks))
    return first_skipped(diverged)


def _roll_back(run: Run, start: Position, before: int) -> tuple[TrainState, Position]:
    """The newest sound state from before a step, and another order of the data after it.

    Where there is none before it, the newest: its weights are the same, as every batch since that
    step was skipped.
    """
    run.saver.wait()
    if has_vanished(run.path):
        raise RunError(f"the run diverged, and {run.path} with its checkpoints has vanished")

    state, position = _restore(run, before)
    guard = dataclasses.replace(state.guard, consecutive=0 * state.guard.consecutive)
    return dataclasses.replace(state, guard=guard), Position(position.step, start.shuffle + 1)
