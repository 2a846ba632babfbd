"""The scores of a split class by class: a table, and a picture of what is taken for what."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from train.data.summary import describe_majority
from train.files import as_path, write_atomic

# Of more classes the worst are printed, and no number is written into the picture's cells.
_LISTED = 30


def class_names(data: Any) -> tuple[str, ...]:
    """Returns the names of the classes of a split, or their numbers where it has no names."""
    return data.class_names or tuple(str(label) for label in range(data.classes))


def confusion_matrix(scores: Mapping[str, np.ndarray], classes: int) -> np.ndarray:
    """Returns how many examples of each class (rows) are taken for each (columns), int64 [C, C].

    Args:
      scores: 'label' and 'predicted' of each example, [N].
      classes: number of classes, C.
    """
    places = scores["label"].astype(np.int64) * classes + scores["predicted"].astype(np.int64)
    return np.bincount(places, minlength=classes**2).reshape(classes, classes)


def print_classes(scores: Mapping[str, np.ndarray], names: Sequence[str], console: Console) -> None:
    """Prints the accuracy of each class, and the majority's share where classes are unequal.

    Args:
      scores: 'label' and 'predicted' of each example, [N].
      names: of the classes.
      console: where they are printed.
    """
    matrix = confusion_matrix(scores, len(names))
    counts, correct = matrix.sum(axis=1), matrix.diagonal()
    accuracy = correct / np.maximum(counts, 1)

    # Classes of which the split has no example come last.
    order = np.arange(len(names))
    if len(names) > _LISTED:
        order = np.argsort(np.where(counts, accuracy, 2.0), kind="stable")[:_LISTED]

    worst = f", the worst {_LISTED} of {len(names)}" if len(names) > _LISTED else ""
    table = Table(title=f"accuracy by class{worst}")
    table.add_column("class")
    for column in ("examples", "accuracy", "most often taken for"):
        table.add_column(column, justify="right")
    for label in order.tolist():
        share = f"{accuracy[label]:.2%}" if counts[label] else "no example"
        mistaken = Text(_most_mistaken(matrix[label], label, names))
        table.add_row(Text(names[label]), f"{counts[label]:,}", share, mistaken)

    console.print(table)
    for line in describe_majority(counts, names):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _most_mistaken(row: np.ndarray, label: int, names: Sequence[str]) -> str:
    """The class that examples of one are most often wrongly taken for, and how often."""
    wrong = np.where(np.arange(len(row)) == label, 0, row)
    return f"{names[int(wrong.argmax())]} ({wrong.max():,})" if wrong.any() else ""


def plot_confusion(
    workdir: str | epath.Path, split: str, scores: Mapping[str, np.ndarray], names: Sequence[str]
) -> epath.Path:
    """Draws the confusion matrix of a split, and returns the picture's path.

    Args:
      workdir: where the picture is written.
      split: the split's name, a part of the picture's.
      scores: 'label' and 'predicted' of each example, [N].
      names: of the classes.
    """
    matrix = confusion_matrix(scores, len(names))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)

    # Not with pyplot, which keeps every figure, and takes a backend from the environment.
    side = min(3 + 0.4 * len(names), 24)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, label="share of the class's examples")

    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(f"{split}: {matrix.trace() / max(matrix.sum(), 1):.1%} correct")
    if len(names) <= _LISTED:
        # A name may hold dollar signs, which matplotlib would read as mathematics.
        places, texts = range(len(names)), [name.replace("$", r"\$") for name in names]
        axes.set_xticks(places, texts, rotation=90)
        axes.set_yticks(places, texts)
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{count}", ha="center", va="center", color=colour)

    path, content = as_path(workdir) / f"confusion_{split}.png", io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write_atomic(path, content.getvalue())
    return path
