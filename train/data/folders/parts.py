"""The splits of a folder's examples: those that stand there, and those that are cut off."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split

from train.data.cuts import SEED
from train.data.folders.checks import check_cut, check_parts_hold
from train.data.folders.kinds import Kind
from train.data.folders.listing import LabelledFile


def present_parts(files: Sequence[LabelledFile], splits: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the places of the files of each split that stands there, all of them if none does.

    Args:
      files: those that can be read.
      splits: of the listing.
    """
    places = np.arange(len(files))
    parts = {"train": places}
    if splits:
        by_file = np.array([file.split for file in files])
        parts = {name: places[by_file == name] for name in splits}

    # As of prepared sets: without a test split the validation split is tested on.
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    return parts


def complete_parts(
    parts: Mapping[str, np.ndarray],
    *,
    labels: np.ndarray,
    classes: Sequence[str],
    lacking: Mapping[str, tuple[str, int]],
    kind: Kind,
) -> dict[str, np.ndarray]:
    """Returns the places of the three splits, in ascending order.

    Args:
      parts: what `present_parts` returned.
      labels: [files] of all files that can be read.
      classes: their names.
      lacking: for each split that is cut off 'train', each class in proportion: the key of the
        config that says how many examples it takes, and how many these are. The test split comes
        first: runs with other validation splits are then tested on the same examples.
      kind: what the files hold.

    Raises:
      BadInput: a split, or a class to train on, would be empty.
    """
    parts = dict(parts)
    for name, (key, held_out) in lacking.items():
        of_train = labels[parts["train"]]
        check_cut(key, held_out, Counter(classes[int(label)] for label in of_train), kind)
        parts["train"], parts[name] = _cut(parts["train"], of_train, held_out)

    trained = Counter(classes[int(label)] for label in labels[parts["train"]])
    sizes = {name: len(part) for name, part in parts.items()}
    check_parts_hold(classes, trained, sizes, kind)
    return {name: np.sort(parts[name]) for name in ("train", "validation", "test")}


def _cut(places: np.ndarray, labels: np.ndarray, held_out: int) -> Any:
    """Divides places by a fixed seed, each class in proportion: those kept, those held out."""
    return train_test_split(places, test_size=held_out, stratify=labels, random_state=SEED)
