"""Where the metrics of a run go: metrics.jsonl and TensorBoard events."""

import importlib
import json
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from tensorboardX import SummaryWriter

REWRITE_SECS = 10  # the least time between two writings of a file that cannot be appended to


class MetricsWriter:
    """Writes scalars, a line of JSON and an event each, in the order of the steps.

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
        self._text = "".join(_line(line) for line in kept)
        self._appends = "://" not in str(workdir)
        self._rewrite()
        self._events = _event_writer(workdir / "events", start_step)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *error: object) -> None:
        if self._enabled:
            self.flush()
            if self._events is not None:
                self._events.close()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends {"step": step, **metrics}; the names carry their split, as 'train/loss'."""
        if not self._enabled:
            return
        line = _line({"step": step, **metrics})
        if self._appends:
            with self._path.open("a") as file:
                file.write(line)
        else:
            self._text += line
            if time.monotonic() - self._written >= REWRITE_SECS:
                self._rewrite()
        if self._events is not None:
            for name, value in metrics.items():
                self._events.add_scalar(name, value, step)

    def flush(self) -> None:
        """Returns when metrics.jsonl holds every line: to be called before a state is saved."""
        if self._enabled and not self._appends:
            self._rewrite()

    def _rewrite(self) -> None:
        self._path.write_text(self._text)
        self._written = time.monotonic()


def _event_writer(folder: epath.Path, start_step: int) -> SummaryWriter | None:
    """A writer of TensorBoard events; None, told once, where a package is missing for gs://."""
    if str(folder).startswith("gs://"):
        try:
            importlib.import_module("google.cloud.storage")  # which tensorboardX writes through
        except ImportError:
            print(
                f"no TensorBoard events in {folder}: for these pip install google-cloud-storage; "
                "metrics.jsonl is written",
                file=sys.stderr,
            )
            return None
    return SummaryWriter(str(folder), purge_step=start_step + 1)


def read_metrics(workdir: str | epath.Path) -> list[dict[str, Any]]:
    """Returns the lines of a workdir's metrics.jsonl; none if there is no such file.

    A last line without its end, left by a run that was killed while it wrote, is left out.
    """
    path = epath.Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def write_scores(workdir: epath.Path, scores: Mapping[str, np.ndarray]) -> None:
    """Writes the scores of each test example, [N] in the split's order, to test_scores.npz."""
    arrays: Any = scores
    with (workdir / "test_scores.npz").open("wb") as file:
        np.savez(file, **arrays)


def read_scores(workdir: str | epath.Path) -> dict[str, np.ndarray]:
    """Returns what `write_scores` wrote."""
    with (epath.Path(workdir) / "test_scores.npz").open("rb") as file:
        return dict(np.load(file))


def mean(values: np.ndarray) -> float:
    """Returns the mean, summed in float64."""
    return float(values.mean(dtype=np.float64))


def _line(values: Mapping[str, Any]) -> str:
    """A line of JSON; a number that is not finite, for which JSON has no word, becomes null."""
    finite = {
        name: value if not isinstance(value, float) or math.isfinite(value) else None
        for name, value in values.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
