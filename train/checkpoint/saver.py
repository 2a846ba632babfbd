"""Saves a run while it trains: in the background, and again where that fails."""

import contextlib
import shutil
import time
from collections.abc import Mapping

import jax
import orbax.checkpoint as ocp
from etils import epath

from train.checkpoint.metadata import (
    METADATA,
    METADATA_FILE,
    STATE,
    make_metadata,
    tokenizer_digest,
)
from train.checkpoint.retention import Retention
from train.checkpoint.workdir import (
    ASIDE,
    checkpoint_folder,
    has_vanished,
    retired_saves,
    saved_steps,
    unfinished_saves,
)
from train.config.border import to_dict
from train.config.run import RunConfig
from train.data.pipeline import Position
from train.devices.processes import all_agree, barrier, is_primary
from train.errors import RunError, first_line, warn
from train.files import is_local
from train.state import TrainState

WAITS_SECS = (1, 4, 15)  # between the attempts of a save that is waited for


class Saver:
    """Saves the states of a run.

    A save is in progress when `save` returns. A failed one is reported loudly and repeated after a
    later step, while training continues; several processes agree that it failed. No checkpoint is
    deleted before there is a newer one, and no retired one before the run is saved at its step or
    later.
    """

    def __init__(self, workdir: epath.Path, config: RunConfig, examples: int):
        """Opens the folder of checkpoints.

        Args:
          workdir: of the run.
          config: of the run.
          examples: number of training examples, for the metadata.
        """
        self._workdir, self._config, self._examples = workdir, config, examples
        self._folder = checkpoint_folder(workdir)
        self._retention = Retention(workdir, config.checkpoint)
        self._manager: ocp.CheckpointManager | None = self._open()
        self._tokenizer = tokenizer_digest(workdir)

        self._pending: int | None = None  # the step whose save is in progress
        self._saved: int | None = None  # the newest step that this saver has saved
        self._failures = 0  # since the last save that succeeded
        self._retry_at: int | None = None
        self._reason = ""

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        # After an error in one of several processes the others may never come to agree.
        if kind is None or jax.process_count() == 1:
            self._collect()

        self._close()

    def is_due(self, step: int) -> bool:
        """Whether the state after `step` steps is to be saved: regularly, and after a failure."""
        self._collect(wait=False)
        retries = self._retry_at is not None and step >= self._retry_at
        return retries or step % self._config.checkpoint.every_steps == 0

    def save(
        self,
        state: TrainState,
        position: Position,
        metrics: Mapping[str, float],
        wait: bool = False,
    ) -> None:
        """Saves a state.

        Args:
          state: after `position.step` batches.
          position: of the run in its data.
          metrics: of the validation split; none where it was not scored at this step.
          wait: for the end of the save, which is attempted several times; else the save is started
            and a failure is reported and followed by another attempt at a later step.

        Raises:
          RunError: the save was waited for, and every attempt failed.
        """
        self._collect()
        if self._saved == position.step:
            return

        self._start(state, position, metrics)
        if not wait:
            return

        for wait_secs in (*WAITS_SECS, None):
            self._collect()
            if self._saved == position.step:
                return

            if wait_secs is not None:
                time.sleep(wait_secs)
                self._start(state, position, metrics)

        raise RunError(
            f"{self._workdir} can no longer be written: saving failed {self._failures} times in a "
            f"row, the last time at step {position.step}: {self._reason}. {self._newest()}\n"
            "Make room or mend the disk, and give the same command again. To resume elsewhere, "
            "copy config.json, tokenizer.json if there is one, metrics.jsonl and the newest "
            "checkpoints/STEP to the same places of another folder, and give it as --workdir"
        )

    def wait(self) -> None:
        """Returns when no save is in progress."""
        self._collect()

    def retire(self, step: int) -> None:
        """Renames every checkpoint after `step`, so that the run is not resumed from it."""
        self._collect()
        later = [s for s in saved_steps(self._workdir) if s > step]
        barrier("checkpoints to retire are known")

        # In descending order: what a kill leaves is older than what it took.
        for newer in reversed(later):
            self._retention.forget(newer)
            if is_primary():
                aside = self._folder / f"{newer}{ASIDE}"
                if aside.exists():
                    aside.rmtree()  # retired before, and replaced by this one since
                (self._folder / str(newer)).rename(aside)

        barrier("checkpoints were retired")
        if later and self._manager is not None:
            self._manager.reload()

        if self._saved is not None and self._saved > step:
            self._saved = None

    def _start(self, state: TrainState, position: Position, metrics: Mapping[str, float]) -> None:
        """Starts a save, or notes that it failed."""
        step, self._retry_at = position.step, None
        # What fails here is no fault of the workdir's: it is raised as it is.
        config = to_dict(self._config)
        record = make_metadata(state, position, self._examples, config, metrics, self._tokenizer)
        trouble: Exception | None = None

        try:
            self._check_disk(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
            self._manager = self._manager or self._open()
            self._retention.add(step, record.metrics)
            items = {
                STATE: ocp.args.StandardSave(state),
                METADATA: ocp.args.JsonSave(record.to_json()),
            }
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:  # orbax and tensorstore raise whatever a broken disk leads to
            trouble = error

        if all_agree(trouble is None):
            self._pending = step
        else:
            self._failed(step, trouble)

    def _collect(self, wait: bool = True) -> None:
        """Records how the save in progress has ended.

        Args:
          wait: for its end; else nothing is done before its end, nor ever where several processes
            have to agree on it.
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

        if not all_agree(trouble is None):
            self._failed(step, trouble)
            return

        if self._failures and is_primary():
            warn(f"{self._workdir} can be written again: step {step} is saved")

        self._saved, self._failures, self._retry_at = step, 0, None
        if is_primary():
            self._tidy(step)

    def _tidy(self, step: int) -> None:
        """Deletes what a save replaced: older ones that were cut off, or retired."""
        # What is left over is harmless, and is deleted the next time.
        with contextlib.suppress(OSError):
            left = unfinished_saves(self._workdir) | retired_saves(self._workdir)
            for name in [name for name, at in left.items() if at <= step]:
                (self._folder / name).rmtree()

    def _failed(self, step: int, error: Exception | None) -> None:
        """Reports a failed save, and sets the step of the next attempt."""
        self._failures += 1
        self._reason = "another process failed" if error is None else first_line(error)

        # The intervals double, up to the regular one.
        every = self._config.checkpoint.every_steps
        wait = min(every, max(every // 10, 1) * 2 ** (self._failures - 1))
        self._retry_at = step + wait

        self._retention.forget(step)
        self._close()
        if is_primary() or error is not None:
            warn(
                f"STEP {step} IS NOT SAVED: {self._reason}\n  The next attempt follows step "
                f"{self._retry_at}, or the end of the run; until then training continues. "
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
            METADATA: ocp.JsonCheckpointHandler(filename=METADATA_FILE),
        }
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._retention,
            lightweight_initialize=True,  # it would read what may be damaged
        )
        return ocp.CheckpointManager(self._folder, item_handlers=handlers, options=options)

    def _close(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            with contextlib.suppress(Exception):  # of a save whose failure was reported
                manager.close()

    def _check_disk(self, size: int) -> None:
        """Raises OSError where a local workdir cannot take a state of `size` bytes.

        Otherwise threads of orbax would wait for one another for minutes until they fail. A workdir
        that has vanished is not made again: it may be a disk that is no longer mounted.
        """
        trouble: OSError | None = None

        if is_primary() and is_local(self._workdir):
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

        if not all_agree(trouble is None):
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
