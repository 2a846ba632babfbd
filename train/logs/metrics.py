"""Where the metrics of a run go: metrics.jsonl and TensorBoard events."""

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

REWRITE_SECS = 10  # the least time between two writings of a file that cannot be appended to


class MetricsWriter:
    """Writes scalars, a line of JSON and an event each, in the order of the steps.

    Every line is kept in memory as well: where metrics.jsonl cannot be written, the run is warned
    and goes on, and the whole file is written as soon as that works again. A local workdir whose
    config.json is gone, as on a disk that is no longer mounted, is not written into.

    A gs:// address has no files to append to: there metrics.jsonl is written anew from time to
    time, by `flush` and at the end.
    """

    def __init__(self, workdir: epath.Path, start_step: int, enabled: bool = True):
        """Leaves out what an interrupted run wrote behind `start_step`.

        Args:
          workdir: of the run.
          start_step: steps that are done already.
          enabled: whether anything is written: of several processes, by the first alone.
        """
        self._enabled = enabled
        if not enabled:
            return
        self._path = workdir / "metrics.jsonl"
        kept = [line for line in read_metrics(workdir) if line["step"] <= start_step]
        kept = [line for line in kept if not any(key.startswith("test/") for key in line)]
        self._lines = [_line(line) for line in kept]
        self._is_local = is_local(workdir)
        config = workdir / "config.json"
        self._config = config if self._is_local and config.exists() else None
        self._has_warned = False
        self._tried = time.monotonic()
        there = self._path.read_bytes() if self._path.exists() else None
        # Whether the file holds every line.
        self._is_current = there == "".join(self._lines).encode()
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

        Does not raise where that fails, but warns, and tries again the next time.
        """
        if not self._enabled:
            return
        line = _line({"step": step, **metrics})
        appends = self._is_local and self._is_current
        self._lines.append(line)
        self._is_current = False
        if appends:
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
        """Writes the file whole, or appends the one line that it lacks; warns where that fails."""
        try:
            if self._config is not None and not self._config.exists():
                raise FileNotFoundError("the workdir has vanished, its config.json is gone")
            if line is None:
                write_atomic(self._path, "".join(self._lines))
            else:
                with self._path.open("a") as file:
                    file.write(line)
        except OSError as error:
            if not self._has_warned:
                warn(
                    f"{self._path} cannot be written: {error}. Training goes on; the lines are "
                    "kept, and written when that works again"
                )
            self._has_warned = True
        else:
            if self._has_warned:
                warn(f"{self._path} is written again, and lacks no line")
            self._has_warned, self._is_current = False, True
        self._tried = time.monotonic()


def read_metrics(workdir: str | epath.Path) -> list[dict[str, Any]]:
    """Returns the lines of a workdir's metrics.jsonl; none if there is no such file.

    A last line without its end, left by a run that was killed while it wrote, is left out.

    Raises:
      BadInput: a line is damaged.
    """
    path = as_path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    *whole, _ = path.read_bytes().split(b"\n")
    lines = []
    for number, text in enumerate(whole, 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise BadInput(
                f"line {number} of {path} is damaged: delete it, or put the file back from a copy"
            )
        lines.append(line)
    return lines


def write_scores(workdir: epath.Path, scores: Mapping[str, np.ndarray]) -> None:
    """Writes the scores of each test example, [N] in the split's order, to test_scores.npz."""
    arrays: Any = scores
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomic(workdir / "test_scores.npz", content.getvalue())


def read_scores(workdir: str | epath.Path) -> dict[str, np.ndarray]:
    """Returns what `write_scores` wrote."""
    with (as_path(workdir) / "test_scores.npz").open("rb") as file:
        return dict(np.load(file))


def _line(values: Mapping[str, Any]) -> str:
    """A line of JSON; a number that is not finite, for which JSON has no word, becomes null."""
    finite = {
        name: value if not isinstance(value, float) or math.isfinite(value) else None
        for name, value in values.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
