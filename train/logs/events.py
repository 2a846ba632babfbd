"""TensorBoard events of a run."""

import contextlib
import importlib
import math
import time
from collections.abc import Iterator, Mapping

from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar

from train.errors import warn
from train.files import is_local

# The least time between two flushes of `write`: to gs:// each of them sends all events again.
FLUSH_SECS = 120


class Events:
    """Writes scalars as TensorBoard events; if that fails, it warns once and writes no more."""

    # Not with tensorboardX's SummaryWriter: on a full disk its thread dies, and then the training
    # loop waits for ever for room in the thread's queue.

    def __init__(self, folder: epath.Path, start_step: int):
        """Opens a new file of events, and has TensorBoard ignore older ones after `start_step`.

        Args:
          folder: which is made if it is missing.
          start_step: steps that are done already.
        """
        self._folder = folder
        self._file: EventsWriter | None = None
        self._flushed = time.monotonic()

        if not _can_write(folder):
            return

        with self._stopping_at_errors():
            if is_local(folder):
                folder.mkdir(exist_ok=True)
            self._file = EventsWriter(str(folder / "events"))

            # On this event TensorBoard drops what an interrupted start wrote from its step on.
            start = SessionLog(status=SessionLog.START)
            self._file.write_event(
                Event(wall_time=time.time(), step=start_step + 1, session_log=start)
            )
            self._file.flush()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one event per metric."""
        if self._file is None:
            return

        with self._stopping_at_errors():
            for name, value in metrics.items():
                # Those of a skipped batch: tensorboardX would warn of each.
                if not math.isfinite(value):
                    continue

                self._file.write_event(
                    Event(wall_time=time.time(), step=step, summary=scalar(name, value))
                )

            if time.monotonic() - self._flushed >= FLUSH_SECS:
                self.flush()

    def flush(self) -> None:
        """Returns when the file holds every event, if it can be written."""
        if self._file is None:
            return

        with self._stopping_at_errors():
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes, and closes the file."""
        if self._file is None:
            return

        with self._stopping_at_errors():
            self._file.close()
            self._file = None

    @contextlib.contextmanager
    def _stopping_at_errors(self) -> Iterator[None]:
        try:
            yield

        # A client of gs:// has error types of its own.
        except Exception as error:
            self._file = None
            warn(
                f"no more TensorBoard events in {self._folder} until the next start: {error}; "
                "training continues without them"
            )


def _can_write(folder: epath.Path) -> bool:
    """Whether the package is installed that tensorboardX writes to a gs:// address with."""
    if not str(folder).startswith("gs://"):
        return True

    try:
        importlib.import_module("google.cloud.storage")
    except ImportError:
        warn(
            f"no TensorBoard events in {folder}: for these pip install google-cloud-storage; "
            "metrics.jsonl is written"
        )
        return False

    return True
