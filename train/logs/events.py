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

FLUSH_SECS = 120  # the least time between two flushes of `write`: to gs:// each sends all events


class Events:
    """Writes scalars as events; none any more after the first that fails, of which it warns.

    Not with tensorboardX's SummaryWriter: on a full disk its thread dies, and then the training
    loop waits without end for a place in the thread's queue.
    """

    def __init__(self, folder: epath.Path, start_step: int):
        """Opens a new file of events, and has TensorBoard leave out older ones behind `start_step`.

        Args:
          folder: which is made where it is missing.
          start_step: steps that are done already.
        """
        self._folder = folder
        self._file = None
        self._flushed = time.monotonic()
        if str(folder).startswith("gs://"):
            try:
                importlib.import_module("google.cloud.storage")  # which tensorboardX writes through
            except ImportError:
                warn(
                    f"no TensorBoard events in {folder}: for these pip install "
                    "google-cloud-storage; metrics.jsonl is written"
                )
                return
        with self._given_up_on_errors():
            if is_local(folder):
                folder.mkdir(exist_ok=True)
            self._file = EventsWriter(str(folder / "events"))
            start = SessionLog(status=SessionLog.START)
            self._file.write_event(
                Event(wall_time=time.time(), step=start_step + 1, session_log=start)
            )
            self._file.flush()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes an event for each of the metrics."""
        if self._file is None:
            return
        with self._given_up_on_errors():
            for name, value in metrics.items():
                if not math.isfinite(value):  # of a skipped batch; tensorboardX warns of each
                    continue
                self._file.write_event(
                    Event(wall_time=time.time(), step=step, summary=scalar(name, value))
                )
            if time.monotonic() - self._flushed >= FLUSH_SECS:
                self.flush()

    def flush(self) -> None:
        """Returns when the file holds every event, if it can."""
        if self._file is None:
            return
        with self._given_up_on_errors():
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes, and closes the file."""
        if self._file is None:
            return
        with self._given_up_on_errors():
            self._file.close()
            self._file = None

    @contextlib.contextmanager
    def _given_up_on_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a client of gs:// has errors of its own
            self._file = None
            warn(
                f"no more TensorBoard events in {self._folder} until the next start: {error}; "
                "training goes on without them"
            )
