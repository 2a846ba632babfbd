"""Where the metrics of a run are written: metrics.jsonl and TensorBoard events."""

import io
import json
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from train.errors import BadInput, warn
from train.files import as_path, is_local, write_atomic
from train.logs.events import Events

# The least time between two writes of a file that cannot be appended to, as at gs:// addresses.
REWRITE_SECS = 10


class MetricsWriter:
    """Writes scalars, one line of JSON and one event each, in the order of the steps.

    If metrics.jsonl cannot be written, the run warns and continues; the whole file is written as
    soon as that works again.
    """

    def __init__(self, workdir: epath.Path, start_step: int, enabled: bool = True):
        """Drops the lines that an interrupted run wrote after `start_step`.

        Args:
          start_step: steps that are done already.
          enabled: whether anything is written; False for all processes but the first.
        """
        self._enabled = enabled
        if not enabled:
            return

        self._path = workdir / "metrics.jsonl"
        self._is_local = is_local(workdir)
        self._config = workdir / "config.json"
        self._was_recorded = self._is_local and self._config.exists()
        self._has_warned = False
        self._tried = time.monotonic()

        # The test's line is written again at the end, whether it was written before or not.
        kept = [line for line in read_metrics(workdir) if line["step"] <= start_step]
        kept = [line for line in kept if not any(key.startswith("test/") for key in line)]

        # Every line is kept in memory, for a file that has to be written again.
        self._lines = [_line(line) for line in kept]
        stored = self._path.read_bytes() if self._path.exists() else None
        self._is_current = stored == "".join(self._lines).encode()
        if not self._is_current:
            self._save()

        self._events = Events(workdir / "events", start_step)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *error: object) -> None:
        if not self._enabled:
            return

        self.flush()
        self._events.close()
        if not self._is_current:
            warn(f"{self._path} could still not be written at the end: it lacks lines")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends {"step": step, **metrics}; the names carry their split, as 'train/loss'.

        If that fails it does not raise, but warns, and tries again the next time.
        """
        if not self._enabled:
            return

        line = _line({"step": step, **metrics})
        can_append = self._is_local and self._is_current
        self._lines.append(line)
        self._is_current = False

        if can_append:
            self._save(line)
        elif self._is_local or time.monotonic() - self._tried >= REWRITE_SECS:
            self._save()

        self._events.write(step, metrics)

    def flush(self) -> None:
        """Returns when the files hold every line, if they can: to be called before a save."""
        if not self._enabled:
            return

        if not self._is_current:
            self._save()

        self._events.flush()

    def _save(self, line: str | None = None) -> None:
        """Writes the whole file, or appends the one line that it lacks; warns if that fails."""
        try:
            self._write(line)
        except OSError as error:
            # Once, and not at every step.
            if not self._has_warned:
                warn(
                    f"{self._path} cannot be written: {error}. Training continues; the lines are "
                    "kept, and written when that works again"
                )
            self._has_warned = True
        else:
            if self._has_warned:
                warn(f"{self._path} is written again, and lacks no line")
            self._has_warned, self._is_current = False, True

        self._tried = time.monotonic()

    def _write(self, line: str | None) -> None:
        # The disk may have been unmounted: a new file would be in the mount point.
        if self._was_recorded and not self._config.exists():
            raise FileNotFoundError("the workdir has vanished, its config.json is gone")

        if line is None:
            write_atomic(self._path, "".join(self._lines))
        else:
            with self._path.open("a") as file:
                file.write(line)


def read_metrics(workdir: str | epath.Path) -> list[dict[str, Any]]:
    """Returns the lines of a workdir's metrics.jsonl; an empty list if there is no such file.

    Raises:
      BadInput: a line is damaged.
    """
    path = as_path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []

    # After the last line's end there is nothing, or part of a line of a run that was killed.
    *complete, _ = path.read_bytes().split(b"\n")
    return [_parse(text, number, path) for number, text in enumerate(complete, 1)]


def _parse(text: bytes, number: int, path: epath.Path) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError:
        line = None

    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        raise BadInput(
            f"line {number} of {path} is damaged: delete it, or put the file back from a copy"
        )

    return line


def write_scores(workdir: epath.Path, scores: Mapping[str, np.ndarray]) -> None:
    """Writes the scores of each test example, [N] in the split's order, to test_scores.npz."""
    arrays: Any = scores

    # Through memory, so that the file is replaced as a whole.
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomic(workdir / "test_scores.npz", content.getvalue())


def read_scores(workdir: str | epath.Path) -> dict[str, np.ndarray]:
    """Returns what `write_scores` wrote."""
    with (as_path(workdir) / "test_scores.npz").open("rb") as file:
        return dict(np.load(file))


def _line(values: Mapping[str, Any]) -> str:
    # JSON has no NaN and no infinity: they become null.
    finite = {
        name: value if not isinstance(value, float) or math.isfinite(value) else None
        for name, value in values.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
