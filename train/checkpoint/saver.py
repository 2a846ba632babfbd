"""Saves a run while it trains: in the background, and again where that fails."""

import contextlib
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import PreservationContext, PreservationPolicy

from train.checkpoint.metadata import (
    RECORD,
    RECORD_FILE,
    STATE,
    Damaged,
    make_record,
    read_record,
    tokenizer_digest,
)
from train.checkpoint.workdir import (
    ASIDE,
    checkpoint_folder,
    has_vanished,
    saved_steps,
    set_aside_saves,
    unfinished_saves,
)
from train.config.run import BEST, CheckpointConfig
from train.data.pipeline import Position
from train.devices.processes import barrier, is_first, on_all
from train.errors import RunError, first_line, warn
from train.files import is_local
from train.state import TrainState

ATTEMPTS = 3  # that fail one behind the other before a run moves to its spare folder
WAITS_SECS = (1, 4, 15)  # between the attempts of a run that is at its end


class CannotSave(RunError):
    """A workdir that takes no checkpoint; the text says why, and which is its newest one."""


class Saver:
    """Saves the states of a run.

    A save is on its way when `save` returns. One that failed is told of, loudly, and tried again
    behind a later step, while training goes on; of several processes all agree that it failed. No
    checkpoint is deleted before a newer one is there, nor one that was set aside before the run is
    saved at its step or behind it.
    """

    def __init__(
        self,
        workdir: epath.Path,
        config: CheckpointConfig,
        run: Mapping[str, Any],
        examples: int,
        train_steps: int,
    ):
        """Opens the folder of checkpoints.

        Args:
          workdir: of the run.
          config: when the run is saved, and what is kept.
          run: the run's whole config, for the records.
          examples: of the training split, for the records.
          train_steps: of the run; a save is due behind the last one.
        """
        self._workdir, self._config = workdir, config
        self._run, self._examples, self._train_steps = run, examples, train_steps
        self._folder = checkpoint_folder(workdir)
        self._keeping = _Keeping(config, _known_metrics(workdir, config.best))
        self._manager: ocp.CheckpointManager | None = self._open()
        self._pending: int | None = None  # the step whose save is on its way
        self._saved: int | None = None  # the newest step that this saver has saved
        self._failures = 0  # since the last save that succeeded
        self._retry_at: int | None = None
        self._reason = ""
        self._tokenizer = tokenizer_digest(workdir)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is None or jax.process_count() == 1:  # the others may never come to agree
            self._settle()
        self._close()

    def is_due(self, step: int) -> bool:
        """Whether the state behind `step` steps is to be saved."""
        self._settle(wait=False)
        retries = self._retry_at is not None and step >= self._retry_at
        return retries or step % self._config.every_steps == 0 or step == self._train_steps

    def save(self, state: TrainState, position: Position, metrics: Mapping[str, float]) -> None:
        """Starts saving a state; a failure is told of, and followed by another attempt.

        Args:
          state: behind `position.step` batches.
          position: of the run in its data.
          metrics: of the validation split; none where it was not scored behind this step.

        Raises:
          CannotSave: several attempts failed, and the config has a spare folder.
        """
        self._settle()
        self._start(state, position, metrics)
        if self._failures >= ATTEMPTS and self._config.spare_dir is not None:
            self._settle()
            if self._failures:
                raise CannotSave(self._state_of_affairs())

    def finish(self, state: TrainState, position: Position, metrics: Mapping[str, float]) -> None:
        """Returns when a state is saved.

        Args:
          state: as in `save`.
          position: as in `save`.
          metrics: as in `save`.

        Raises:
          CannotSave: several attempts failed.
        """
        self._settle()
        for wait_secs in (*WAITS_SECS, None):
            if self._saved == position.step:
                return
            self._start(state, position, metrics)
            self._settle()
            if self._saved != position.step and wait_secs is not None:
                time.sleep(wait_secs)
        if self._saved != position.step:
            raise CannotSave(self._state_of_affairs())

    def wait(self) -> None:
        """Returns when no save is on its way."""
        self._settle()

    def set_aside(self, step: int) -> None:
        """Renames every checkpoint behind `step`, from which the run goes on otherwise."""
        self._settle()
        behind = [s for s in saved_steps(self._workdir) if s > step]
        barrier("checkpoints to set aside are known")
        for newer in reversed(behind):  # so that what a kill leaves is older than what it took
            self._keeping.metrics.pop(newer, None)
            if is_first():
                aside = self._folder / f"{newer}{ASIDE}"
                if aside.exists():
                    aside.rmtree()  # it was set aside before, and this one had replaced it
                (self._folder / str(newer)).rename(aside)
        barrier("checkpoints were set aside")
        if behind and self._manager is not None:
            self._manager.reload()
        if self._saved is not None and self._saved > step:
            self._saved = None

    def elsewhere(self, workdir: epath.Path) -> "Saver":
        """Returns a saver of the same run for another workdir."""
        return Saver(workdir, self._config, self._run, self._examples, self._train_steps)

    def _start(self, state: TrainState, position: Position, metrics: Mapping[str, float]) -> None:
        """Starts a save, or notes that it failed."""
        step, self._retry_at = position.step, None
        # What fails here is no fault of the workdir's: it is raised as it is.
        record = make_record(state, position, self._examples, self._run, metrics, self._tokenizer)
        trouble: Exception | None = None
        try:
            self._check_disk(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
            self._manager = self._manager or self._open()
            self._keeping.add(step, record.metrics)
            items = {
                STATE: ocp.args.StandardSave(state),
                RECORD: ocp.args.JsonSave(record.to_json()),
            }
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:  # orbax and tensorstore raise whatever a broken disk leads to
            trouble = error
        if on_all(trouble is None):
            self._pending = step
        else:
            self._failed(step, trouble)

    def _settle(self, wait: bool = True) -> None:
        """Takes note of how the save that is on its way has ended.

        Args:
          wait: for its end; else nothing is done before, nor ever where several processes are to
            agree on it.
        """
        if self._pending is None or self._manager is None:
            return
        if not wait and (jax.process_count() > 1 or self._manager.is_saving_in_progress()):
            return
        step, self._pending = self._pending, None
        trouble: Exception | None = None
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # as above
            trouble = error
            if self._is_saved(step):
                warn(f"step {step} is saved, and an older one cannot be deleted: {error}")
                self._close()
                trouble = None
        if not on_all(trouble is None):
            self._failed(step, trouble)
            return
        if self._failures and is_first():
            warn(f"{self._workdir} takes checkpoints again: step {step} is saved")
        self._saved, self._failures, self._retry_at = step, 0, None
        if is_first():
            self._tidy(step)

    def _tidy(self, step: int) -> None:
        """Deletes what a save replaced: older ones that were cut off, or set aside."""
        with contextlib.suppress(OSError):  # what is left over is no harm, and goes the next time
            left = unfinished_saves(self._workdir) | set_aside_saves(self._workdir)
            for name in [name for name, at in left.items() if at <= step]:
                (self._folder / name).rmtree()

    def _failed(self, step: int, error: Exception | None) -> None:
        """Tells of a save that failed, and sets the step of the next attempt."""
        self._failures += 1
        self._reason = "another process failed" if error is None else first_line(error)
        every = self._config.every_steps
        wait = min(every, max(every // 10, 1) * 2 ** (self._failures - 1))
        self._retry_at = step + wait
        self._keeping.metrics.pop(step, None)
        self._close()
        if is_first() or error is not None:
            warn(
                f"STEP {step} IS NOT SAVED: {self._reason}\n  The next attempt is made behind step "
                f"{self._retry_at}, or at the run's end; until then training goes on. "
                f"{self._newest()}"
            )

    def _is_saved(self, step: int) -> bool:
        try:
            return step in saved_steps(self._workdir)
        except OSError:
            return False

    def _open(self) -> ocp.CheckpointManager:
        handlers = {
            STATE: ocp.StandardCheckpointHandler(),
            RECORD: ocp.JsonCheckpointHandler(filename=RECORD_FILE),
        }
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._keeping,
            lightweight_initialize=True,  # it would read what may be damaged
        )
        return ocp.CheckpointManager(self._folder, item_handlers=handlers, options=options)

    def _close(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            with contextlib.suppress(Exception):  # of a save whose failure was told of
                manager.close()

    def _check_disk(self, size: int) -> None:
        """Raises OSError where a local workdir cannot take a state of `size` bytes.

        It would be found out later, by threads of orbax' that wait for one another for minutes. A
        workdir that has vanished is not made anew: it may be a disk that is no longer mounted.
        """
        trouble: OSError | None = None
        if is_first() and is_local(self._workdir):
            probe = self._folder / ".probe"
            try:
                if has_vanished(self._workdir):
                    raise FileNotFoundError(f"{self._workdir} has vanished")
                self._folder.mkdir(exist_ok=True)
                probe.write_text("can this be written?")
                probe.unlink()
                free = shutil.disk_usage(self._folder).free
                if free < size:
                    raise OSError(f"the disk has {free:,} bytes left, and the state takes {size:,}")
            except OSError as error:
                trouble = error
        if not on_all(trouble is None):
            raise trouble or OSError(f"the first process cannot write into {self._workdir}")

    def _newest(self) -> str:
        try:
            steps = saved_steps(self._workdir)
        except OSError:
            steps = []
        if steps:
            return f"The newest checkpoint is of step {steps[-1]}."
        if self._saved is not None:
            return f"That of step {self._saved} cannot be seen now."
        return "There is no checkpoint to be seen."

    def _state_of_affairs(self) -> str:
        return (
            f"{self._workdir} takes no checkpoints ({self._failures} attempts failed, the last: "
            f"{self._reason}). {self._newest()}"
        )


class _Keeping(PreservationPolicy):
    """Keeps the newest checkpoints, and the best one by a metric."""

    def __init__(self, config: CheckpointConfig, metrics: dict[int, float]):
        self._keep, self._best = config.keep, config.best
        self.metrics = metrics  # of the checkpoints that were scored, by step

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes note of a checkpoint."""
        if self._best is not None and self._best in metrics:
            self.metrics[step] = metrics[self._best]

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: PreservationContext
    ) -> Sequence[bool]:
        """Says of each checkpoint whether it is kept."""
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        kept = {
            *steps[-self._keep :],
            best_step({s: self.metrics.get(s) for s in steps}, self._best),
        }
        return [checkpoint.step in kept for checkpoint in checkpoints]


def best_step(metrics: Mapping[int, float | None], best: str | None) -> int | None:
    """Returns the step of the best checkpoint, the newest of several; None where none was scored.

    Args:
      metrics: the checkpoints' values of the metric, by step.
      best: the metric's name; None: no checkpoint is the best one.
    """
    scored = {step: v for step, v in metrics.items() if v is not None and math.isfinite(v)}
    if best is None or not scored:
        return None
    return max(scored, key=lambda step: (BEST[best] * scored[step], step))


def _known_metrics(workdir: epath.Path, best: str | None) -> dict[int, float]:
    """The metric of each checkpoint that was scored and whose record can be read, by step."""
    known = {}
    for step in saved_steps(workdir):
        try:
            metrics = read_record(workdir, step).metrics
        except Damaged:
            continue
        if best in metrics:
            known[step] = metrics[best]
    return known
