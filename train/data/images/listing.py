"""The images of a folder, found: whose class is which, and which split they are in.

| what stands there | classes | splits |
|---|---|---|
| DIR/CLASS/... | the folders' names | none |
| DIR/train/CLASS/..., DIR/val/CLASS/..., DIR/test/CLASS/... | the folders' names | these |
| FILE.csv with the columns file, label | the labels | those of a column 'split', if it has one |

`validation` and `valid` are other names of `val`. The files of a class lie at any depth in its
folder; hidden ones are left out. Paths in a CSV start at its folder.
"""

import csv
import dataclasses
import pathlib
from collections.abc import Iterator

from train.data.file_search import entries, find_files, is_visible, report
from train.data.images import listing_checks as checks
from train.files import absolute

# The names of splits in folders and tables -> the trainer's.
SPLITS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """A file of a class."""

    path: pathlib.Path
    name: str  # in the folder that was given, for messages
    label: int
    split: str | None  # None where the folder has no splits


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of all classes, by the names of the files.

    Attributes:
      files: all of them, whether they can be read or not.
      classes: the classes' names, sorted.
      splits: the splits that stand there: a part of 'train', 'validation', 'test'; () if none.
    """

    files: tuple[ImageFile, ...]
    classes: tuple[str, ...]
    splits: tuple[str, ...]


def list_images(files: str | None) -> Listing:
    """Returns what a folder or a CSV names, sorted by the names of the files.

    Args:
      files: config.data.files.

    Raises:
      BadInput: there is no such folder, it is empty, its classes or splits are not clear, or there
        is one class alone.
    """
    root = pathlib.Path(absolute(checks.required(files)))
    checks.check_exists(root)
    found = list(_of_table(root) if root.is_file() else _of_folder(root))

    classes = tuple(sorted({label for _, label, _ in found}))
    checks.check_classes(root, classes)
    present = {split for *_, split in found}
    splits = tuple(name for name in ("train", "validation", "test") if name in present)
    checks.check_train(root, [(label, split) for _, label, split in found], splits)

    # By file name first: the order is the same however the files are divided into folders.
    numbers = {name: number for number, name in enumerate(classes)}
    folder = root.parent if root.is_file() else root
    listed = [
        ImageFile(path, _name(path, folder), numbers[label], split) for path, label, split in found
    ]
    listed.sort(key=lambda file: (file.path.name, file.name))
    return Listing(tuple(listed), classes, splits)


_Found = tuple[pathlib.Path, str, str | None]  # path, label, split


def _of_folder(root: pathlib.Path) -> Iterator[_Found]:
    """The files of a folder of classes, or of one of splits of classes."""
    splits = {folder: SPLITS.get(folder.name.lower()) for folder in _folders(root)}
    names = {split for split in splits.values() if split}

    # A class may be called 'train', as others are called 'bus' and 'car'.
    is_split = bool(names) and (None not in splits.values() or len(names) > 1)
    if not is_split:
        yield from _of_classes(root, None)
        return

    checks.check_splits(root, {folder.name: split for folder, split in splits.items()})
    for folder, split in splits.items():
        yield from _of_classes(folder, split)


def _of_classes(root: pathlib.Path, split: str | None) -> Iterator[_Found]:
    folders = _folders(root)
    beside = [e for e in entries(root) if is_visible(e.name) and not e.is_dir()]
    checks.check_folders(root, folders, len(beside))
    if beside:
        report(f"{root}: {len(beside)} files in no class's folder are left out")

    for folder in folders:
        files = find_files(folder)
        checks.check_files(folder, files)
        for path in files:
            yield path, folder.name, split


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
    return [e for e in entries(root) if e.is_dir() and is_visible(e.name)]


def _of_table(path: pathlib.Path) -> Iterator[_Found]:
    """The files that a CSV names."""
    with checks.reading_table(path):
        # Some programs begin a CSV with a mark of the byte order.
        lines = path.read_text(encoding="utf-8-sig").splitlines()

    rows = [
        (n, [cell.strip() for cell in row]) for n, row in enumerate(csv.reader(lines), 1) if row
    ]
    checks.check_has_rows(path, len(rows))

    # Without a line of names the first one names an image.
    columns = [name.lower() for name in rows[0][1]]
    if {"file", "label"} <= set(columns):
        rows = rows[1:]
    else:
        first = rows[0][1]
        checks.check_columns(path, first, (path.parent / first[0]).is_file())
        columns = ["file", "label"]
    checks.check_has_rows(path, len(rows))

    seen: dict[pathlib.Path, int] = {}
    for number, row in rows:
        values = dict(zip(columns, row, strict=False))
        checks.check_row(path, number, values, columns, SPLITS)

        file = path.parent / values["file"]
        checks.check_once(path, number, file, seen)
        yield file, values["label"], SPLITS[values["split"].lower()] if "split" in columns else None


def _name(path: pathlib.Path, folder: pathlib.Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
