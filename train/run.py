"""A run: what stays the same from its first step to its last, and what is due after each."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from train.adapters import merge
from train.checkpoint.checks import check_origin, warn_of_learning_rate
from train.checkpoint.initial import check_initial, first_state
from train.checkpoint.initial_checks import check_base, check_optimizer_names
from train.checkpoint.restore import restore_newest
from train.checkpoint.saver import Saver
from train.checkpoint.weights import Base, read_base
from train.checkpoint.workdir import (
    check_inputs,
    check_workdir,
    locked,
    read_tokenizer,
    record_run,
)
from train.config.modules import warn_of_missing
from train.config.refining import at_step
from train.config.run import RunConfig
from train.data.pipeline import BEGINNING, Position, check_batch_size, train_batches
from train.data.split import Split
from train.devices.checks import check_run_fits
from train.devices.mesh import device_mesh, local_rows
from train.devices.processes import AnyProcess, barrier, is_primary
from train.optimizer import make_optimizer
from train.programs import Programs
from train.refinement import check_refinable
from train.scores import score
from train.signals import StopSignals
from train.startup import note
from train.state import TrainState, expected_state
from train.tasks import make_task
from train.tasks.task import Batch, Metrics, Task


class Due(NamedTuple):
    """What follows a step.

    Attributes:
      last: whether it is the run's last step.
      stop: whether the run stops here before its end, as a signal asked for.
      evaluate: whether the validation split is scored.
      save: whether the state is saved.
    """

    last: bool
    stop: bool
    evaluate: bool
    save: bool


class Schedule:
    """Says what is due, step by step."""

    def __init__(self, config: RunConfig, saver: Saver):
        self._config, self._saver = config, saver

    def due(self, step: int, stop: bool) -> Due:
        """Returns what follows this step.

        Args:
          step: the step that was dispatched, from 1.
          stop: whether the run was asked to stop.
        """
        last = step == self._config.train_steps
        evaluate = last or step % self._config.eval.every_steps == 0

        # The saver retries a save that failed, so one may be due at any step.
        save = last or stop or self._saver.is_due(step)

        # At the last step there is nothing left to stop: the run ends as any other.
        return Due(last=last, stop=stop and not last, evaluate=evaluate, save=save)


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from a run's first step to its last."""

    config: RunConfig
    path: epath.Path
    mesh: Mesh
    splits: Mapping[str, Split]
    task: Task
    optimizer: optax.GradientTransformation
    saver: Saver
    schedule: Schedule
    stop_requested: Callable[[], bool]
    programs: Programs
    init_state: Callable[[], TrainState]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    eval_step: Callable[[Any, Batch], Metrics]
    recover: Callable[[Any, Split, int], dict[str, float]]  # as `make_recovery` returns it
    base: Base | None  # the frozen weights that adapters adapt

    def at(self, step: int) -> "Run":
        """Returns the run after that many steps, whose weights over depth may be refined."""
        config = at_step(self.config, step)
        steps = self.programs.steps(config, self.optimizer, self.task, self.mesh, self.base)
        return dataclasses.replace(self, config=config, **steps)

    def restore(self, before: int | None = None) -> tuple[TrainState, Position]:
        """Returns the newest sound state, or the initial one, and its position in the data.

        Args:
          before: prefer checkpoints from before this step; None: the newest of all.
        """
        note("restoring or initialising the state")
        target = functools.partial(expected_state, self.config, self.mesh)
        restored = restore_newest(self.path, target, before)

        if restored is None:
            start = BEGINNING
            state, self.saver.initial = first_state(
                self.path,
                self.config,
                self.optimizer,
                self.mesh,
                state=self.init_state(),
                base=self.base,
            )
        else:
            state, record = restored
            start, self.saver.initial = record.position, record.initial
            check_origin(record, self.path, len(self.splits["train"]))
            check_base(record, self.base, self.config, self.path)
            if before is None and is_primary():
                warn_of_learning_rate(self.path, config=self.config, metadata=record)
                warn_of_missing(self.path, record.config.get("modules", ()))

        self.saver.retire(start.step)
        return state, start

    def batches(self, start: Position) -> Iterator[dict[str, np.ndarray]]:
        """Returns an iterator over this process's rows of each batch, from a position on."""
        config = self.config
        return train_batches(
            self.splits["train"],
            batch_size=config.batch_size,
            steps=config.train_steps,
            seed=config.seed,
            start=start,
            rows=local_rows(self.mesh, config.batch_size),
            repeats=config.data.repeats_per_batch,
            workers=config.data.workers,
        )

    def eval_params(self, state: TrainState) -> Any:
        """Returns the weights to score: averaged if the run keeps an average, adapters merged."""
        params = state.eval_params
        return params if self.base is None else merge(self.config, params, self.base.params)

    def score(self, split: str, state: TrainState) -> dict[str, np.ndarray]:
        """Returns the scores of every example of a split, [N] each."""
        params = self.eval_params(state)
        size, workers = self.config.eval.batch_size, self.config.data.workers
        return score(params, self.splits[split], size, self.mesh, self.eval_step, workers=workers)

    def recovery(self, state: TrainState) -> dict[str, float]:
        """Returns how well a reversible pair recovers a validation batch; empty without a pair."""
        # Before the weights are looked at: with adapters they would be merged for nothing.
        if self.config.model.depth.reversible is None:
            return {}

        split = self.splits["validation"]
        return self.recover(self.eval_params(state), split, self.config.batch_size)


@contextlib.contextmanager
def prepare_run(config: RunConfig, workdir: str | epath.Path, programs: Programs) -> Iterator[Run]:
    """Makes what a run needs, inside its locked workdir.

    Raises:
      BadInput: a config, workdir or data set that is refused.
    """
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
