"""The curves of a run, as a picture."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from matplotlib.figure import Figure

from train.files import as_path, write_atomic
from train.logs.metrics import read_metrics

_COLOURS = {"train": "#9aa5b1", "val": "#1f6feb", "test": "#d1242f"}


def plot_curves(workdir: str | epath.Path) -> epath.Path:
    """Plots a run's loss, accuracy and learning rate over the steps; returns the picture's path."""
    lines = read_metrics(workdir)
    panels = ("loss", "accuracy", "learning_rate")

    # Not with pyplot, which keeps every figure, and takes a backend from the environment.
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(panels)), panels, strict=True):
        series = {split: _series(lines, f"{split}/{name}") for split in _COLOURS}
        for split, (steps, values) in series.items():
            if steps:
                # A line through a single point cannot be seen.
                style = "o" if len(steps) == 1 else "-"
                axes.plot(steps, values, style, color=_COLOURS[split], label=split)

        axes.set_xlabel("step")
        axes.set_title(name.replace("_", " "))
        axes.grid(alpha=0.3)

        # A run on text has no accuracy: matplotlib warns of an empty legend.
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)

    path = as_path(workdir) / "curves.png"
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    write_atomic(path, content.getvalue())
    return path


def _series(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    # null stands for a value that was not finite.
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]
