"""Saves a run while it trains: in the background, and again if that fails."""

import contextlib
import time
from collections.abc import Mapping

import jax
import orbax.checkpoint as ocp
from etils import epath

from train.checkpoint.checks import check_disk
from train.checkpoint.metadata import (
    METADATA,
    METADATA_FILE,
    STATE,
    Initial,
    inputs_digest,
    make_metadata,
    tokenizer_digest,
)
from train.checkpoint.retention import Retention
from train.checkpoint.workdir import RETIRED, checkpoint_folder, delete_replaced, saved_steps
from train.config.border import to_dict
from train.config.refining import at_step
from train.config.run import RunConfig
from train.data.pipeline import Position
from train.devices.processes import all_agree, barrier, is_primary
from train.errors import RunError, first_line, warn
from train.state import TrainState

# Between the attempts of a save that is waited for.
WAITS_SECS = (1, 4, 15)


class Saver:
    """Saves the states of a run.

    A save is in progress when `save` returns. A failed one is reported loudly and repeated after a
    later step, while training continues; several processes agree that it failed. No checkpoint is
    deleted before there is a newer one, and no retired one before the run is saved at its step or
    later.

    Attributes:
      initial: whence the run's first weights are, for the metadata; None: they were random.
    """

    def __init__(
        self, workdir: epath.Path, config: RunConfig, examples: int, base: str | None = None
    ):
        """Opens the folder of checkpoints.

        Args:
          examples: number of training examples, for the metadata.
          base: digest of the frozen weights that adapters adapt, for the metadata.
        """
        self.initial: Initial | None = None
        self._base = base
        self._workdir, self._config, self._examples = workdir, config, examples
        self._folder = checkpoint_folder(workdir)
        self._retention = Retention(workdir, config.checkpoint)
        self._manager: ocp.CheckpointManager | None = self._open()
        self._tokenizer, self._inputs = tokenizer_digest(workdir), inputs_digest(workdir)

        self._pending: int | None = None  # step whose save is in progress
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
          metrics: of the validation split; empty if it was not scored at this step.
          wait: whether to wait for the end of the save, and to attempt it several times. Otherwise
            it is only started; a failure is reported, and attempted again at a later step.

        Raises:
          RunError: the save was waited for, and every attempt failed.
        """
        self._collect()

        # Saved before without waiting, say: orbax refuses a step that it holds already.
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
            "copy config.json, inputs.json, tokenizer.json if there is one, metrics.jsonl and the "
            "newest checkpoints/STEP to the same places of another folder, and give it as --workdir"
        )

    def wait(self) -> None:
        """Returns when no save is in progress."""
        self._collect()

    def retire(self, step: int) -> None:
        """Renames every checkpoint after `step`, so that the run is not resumed from it."""
        self._collect()
        later = [s for s in saved_steps(self._workdir) if s > step]
        barrier("checkpoints to retire are known")

        # In descending order: what a kill in between leaves is older than what was retired.
        for newer in reversed(later):
            self._retention.forget(newer)

            if is_primary():
                retired = self._folder / f"{newer}{RETIRED}"
                # One that was retired before, and replaced by this one since.
                if retired.exists():
                    retired.rmtree()
                (self._folder / str(newer)).rename(retired)

        barrier("checkpoints were retired")

        # orbax keeps a list of checkpoints, and refuses to save a step that is on it.
        if later and self._manager is not None:
            self._manager.reload()

        if self._saved is not None and self._saved > step:
            self._saved = None

    def _start(self, state: TrainState, position: Position, metrics: Mapping[str, float]) -> None:
        """Starts a save, or notes that it failed."""
        step, self._retry_at = position.step, None

        # Outside of the `try`: what fails here is not the workdir's fault, and is not retried.
        metadata = make_metadata(
            state=state,
            position=position,
            examples=self._examples,
            config=to_dict(at_step(self._config, step)),
            metrics=metrics,
            tokenizer=self._tokenizer,
            inputs=self._inputs,
            initial=self.initial,
            base=self._base,
        )

        trouble: Exception | None = None
        try:
            check_disk(self._workdir, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
            self._manager = self._manager or self._open()

            # orbax decides what to delete while it saves: the metric must be there before.
            self._retention.add(step, metadata.metrics)
            items = {
                STATE: ocp.args.StandardSave(state),
                METADATA: ocp.args.JsonSave(metadata.to_json()),
            }
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

        # A broken disk makes orbax and tensorstore raise errors of any type.
        except Exception as error:
            trouble = error

        if all_agree(trouble is None):
            self._pending = step
        else:
            self._failed(step, trouble)

    def _collect(self, wait: bool = True) -> None:
        """Records how the save in progress has ended.

        Args:
          wait: for its end; otherwise nothing is done before its end.
        """
        if self._pending is None or self._manager is None:
            return

        # Several processes see the end at different times, and would not agree on it here.
        if not wait and (jax.process_count() > 1 or self._manager.is_saving_in_progress()):
            return

        step, self._pending = self._pending, None
        trouble: Exception | None = None

        try:
            self._manager.wait_until_finished()
        except Exception as error:
            trouble = error

            # orbax deletes old checkpoints after the new one is committed.
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
            delete_replaced(self._workdir, step)

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
            # Otherwise it reads the metadata of every checkpoint, one of which may be damaged.
            lightweight_initialize=True,
        )
        return ocp.CheckpointManager(self._folder, item_handlers=handlers, options=options)

    def _close(self) -> None:
        manager, self._manager = self._manager, None
        if manager is None:
            return

        # It raises the error of a failed save, which was reported.
        with contextlib.suppress(Exception):
            manager.close()

    def _newest(self) -> str:
        try:
            steps = saved_steps(self._workdir)
        except OSError:
            steps = []

        if steps:
            return f"The newest checkpoint is of step {steps[-1]}."

        # The disk may be gone: the checkpoint need not be lost.
        if self._saved is not None:
            return f"The checkpoint of step {self._saved} cannot be seen now."

        return "No checkpoint can be seen."
