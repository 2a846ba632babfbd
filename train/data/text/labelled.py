"""Labelled texts of a folder: a folder of files per class, or a CSV of texts and labels."""

import codecs
import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from train.data.folders.kinds import TEXTS
from train.data.folders.listing import LabelledFile, list_files
from train.data.folders.parts import complete_parts, present_parts
from train.data.folders.reading import good_places, on_files, origin_of
from train.data.split import Origin


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """The texts that can be read.

    Attributes:
      files: N files, or lines of a table.
      texts: of each.
      labels: [N] int32.
      classes: names.
      splits: those that stand there; () if there are none.
      origin: says what the whole folder held.
    """

    files: Sequence[LabelledFile]
    texts: list[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    origin: Origin


def read_labelled(files: str | None, text_key: str, label_key: str) -> Labelled:
    """Reads the texts of a folder or a CSV; those that cannot be read are named and left out.

    Args:
      files: config.data.files.
      text_key: the column of a CSV that holds the text.
      label_key: the one that holds the label.

    Raises:
      BadInput: a folder or table that is refused, or fewer than two texts of a class.
    """
    listing = list_files(files, TEXTS, (text_key, label_key))
    read = list(on_files(listing.files, _read, "reading the texts"))
    good = good_places(listing, read, TEXTS)

    digests = ["" if isinstance(one, Exception) else one[1] for one in read]
    return Labelled(
        files=[listing.files[place] for place in good],
        texts=[read[place][0] for place in good],
        labels=np.array([listing.files[place].label for place in good], np.int32),
        classes=listing.classes,
        splits=listing.splits,
        origin=origin_of(listing, digests, good),
    )


def find_parts(found: Labelled, held_out_fraction: float) -> dict[str, np.ndarray]:
    """Returns the places of the texts of the splits 'train', 'validation' and 'test'.

    Args:
      found: the texts.
      held_out_fraction: of the training texts, for each split that does not stand there.

    Raises:
      BadInput: too few texts of a class for the splits.
    """
    parts = present_parts(found.files, found.splits)
    # As many as there are classes, at least: fewer could not hold one of each.
    held_out = max(round(held_out_fraction * len(parts["train"])), len(found.classes))
    lacking = [name for name in ("test", "validation") if name not in parts]
    return complete_parts(
        parts,
        labels=found.labels,
        classes=found.classes,
        lacking=dict.fromkeys(lacking, ("config.data.held_out_fraction", held_out)),
        kind=TEXTS,
    )


def as_text(content: bytes) -> str:
    """Returns the text of a file.

    Raises:
      ValueError: it is empty, or no text in UTF-8.
    """
    # Images, archives and the like hold NUL bytes, and no text does.
    if b"\0" in content:
        raise ValueError("it holds NUL bytes")

    # A mark of the byte order is not part of the text.
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 from byte {error.start} on") from error

    if not text.strip():
        raise ValueError("it is empty")
    return text


def _read(file: LabelledFile) -> tuple[str, str]:
    """A file's text, and the digest of what it holds."""
    content = file.read()
    return as_text(content), hashlib.sha256(content).hexdigest()
