"""Where the metrics of a run go: metrics.jsonl and TensorBoard events."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from tensorboardX import SummaryWriter


class MetricsWriter:
    """Writes scalars, a line of JSON and an event each, in the order of the steps."""

    def __init__(self, workdir: epath.Path, start_step: int):
        self._path = workdir / "metrics.jsonl"
        kept = [line for line in read_metrics(workdir) if line["step"] <= start_step]
        kept = [line for line in kept if not any(key.startswith("test/") for key in line)]
        self._path.write_text("".join(_line(line) for line in kept))
        self._events = SummaryWriter(str(workdir / "events"), purge_step=start_step + 1)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._events.close()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends {"step": step, **metrics}; the names carry their split, as 'train/loss'."""
        with self._path.open("a") as file:
            file.write(_line({"step": step, **metrics}))
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)


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
