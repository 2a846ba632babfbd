"""A data set in a few lines, for people."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from odeformer import ViTConfig
from train.config.run import DataConfig

# Of more classes the numbers of images would fill the screen.
_LISTED = 20


def describe_model(model: Any) -> str:
    """Returns what a model takes, in words: 'images of 8 x 8 pixels ...'."""
    if isinstance(model, ViTConfig):
        height, width, channels = model.image_shape
        return (
            f"images of {height} x {width} pixels and {channels} channel{'s' * (channels > 1)} in "
            f"patches of {model.patch_size}"
        )
    return f"texts of up to {model.block_size:,} tokens of {model.vocabulary:,}"


def describe_data(config: DataConfig, splits: Mapping[str, Any]) -> list[str]:
    """Returns lines that say how large a set's splits are, and how large its classes.

    Args:
      config: of the set.
      splits: by name; those that know their labels have class_names and labels.
    """
    name = getattr(config, "files", None) or config.name
    sizes = ", ".join(f"{split} {len(data):,}" for split, data in splits.items())
    names = getattr(splits["train"], "class_names", ())
    labels: list[Any] = [getattr(data, "labels", None) for data in splits.values()]
    if not names or any(one is None for one in labels):
        return [f"{name}: {sizes}"]

    counts = np.bincount(np.concatenate(labels), minlength=len(names))
    listed = [f"{name} {count:,}" for name, count in zip(names, counts, strict=True)]
    more = [f"and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
    lines = [f"{name}: {sizes}; {len(names)} classes: {', '.join([*listed[:_LISTED], *more])}"]

    return lines + describe_majority(counts, names)


def describe_majority(counts: Sequence[int] | np.ndarray, names: Sequence[str]) -> list[str]:
    """Returns a line that says what always naming the largest class would score; [] if even.

    Args:
      counts: number of examples by class.
      names: of the classes.
    """
    # Classes of splits that were cut in proportion differ by an example or two.
    if max(counts) <= 1.2 * min(counts):
        return []

    largest = int(np.argmax(counts))
    share = counts[largest] / sum(counts)
    return [
        f"the classes are unequal: {names[largest]!r}, the majority, has {share:.1%} of the "
        "examples, which a model that always names it gets right"
    ]
