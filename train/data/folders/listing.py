"""The labelled files of a folder, found: whose class is which, and which split they are in.

| what stands there | classes | splits |
|---|---|---|
| DIR/CLASS/... | the folders' names | none |
| DIR/train/CLASS/..., DIR/val/CLASS/..., DIR/test/CLASS/... | the folders' names | these |
| FILE.csv with the columns file, label (of texts: text, label) | the labels | those of 'split' |

A column 'split' may be missing. `validation` and `valid` are other names of `val`. The files of a
class lie at any depth in its folder; hidden ones are left out. Paths in a CSV start at its folder.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

from train.data.file_search import entries, find_files, is_visible, report
from train.data.folders import checks
from train.data.folders.kinds import Kind
from train.data.folders.table import SPLITS, Found, read_table
from train.files import absolute


@dataclasses.dataclass(frozen=True)
class LabelledFile:
    """A file of a class, or a line of a table that holds the example itself."""

    path: pathlib.Path
    name: str  # in the folder that was given, for messages
    label: int
    split: str | None  # None where the folder has no splits
    text: str | None = None  # of a line that holds the example itself

    def read(self) -> bytes:
        """Returns what the file, or the line of the table, holds."""
        return self.path.read_bytes() if self.text is None else self.text.encode()


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of all classes, by the names of the files.

    Attributes:
      files: all of them, whether they can be read or not.
      classes: the classes' names, sorted.
      splits: the splits that stand there: a part of 'train', 'validation', 'test'; () if none.
    """

    files: tuple[LabelledFile, ...]
    classes: tuple[str, ...]
    splits: tuple[str, ...]


def list_files(files: str | None, kind: Kind, columns: Sequence[str] = ()) -> Listing:
    """Returns what a folder or a CSV names, sorted by the names of the files.

    Args:
      files: config.data.files.
      kind: what they hold.
      columns: of a CSV, those of the example and the label; () for those of the kind.

    Raises:
      BadInput: there is no such folder, it is empty, its classes or splits are not clear, or there
        is one class alone.
    """
    root = pathlib.Path(absolute(checks.required(files, kind)))
    checks.check_exists(root, kind)
    columns = columns or (kind.column, "label")
    found = list(read_table(root, kind, columns) if root.is_file() else _of_folder(root, kind))

    classes = tuple(sorted({file.label for file in found}))
    checks.check_classes(root, classes, kind)
    present = {file.split for file in found}
    splits = tuple(name for name in ("train", "validation", "test") if name in present)
    checks.check_train(root, [(file.label, file.split) for file in found], splits, kind)

    # By file name first: the order is the same however the files are divided into folders.
    numbers = {name: number for number, name in enumerate(classes)}
    folder = root.parent if root.is_file() else root
    found.sort(key=lambda file: (file.path.name, file.line, _name(file, folder)))
    listed = [
        LabelledFile(
            path=file.path,
            name=_name(file, folder),
            label=numbers[file.label],
            split=file.split,
            text=file.text,
        )
        for file in found
    ]
    return Listing(tuple(listed), classes, splits)


def _of_folder(root: pathlib.Path, kind: Kind) -> Iterator[Found]:
    """The files of a folder of classes, or of one of splits of classes."""
    splits = {folder: SPLITS.get(folder.name.lower()) for folder in _folders(root)}
    names = {split for split in splits.values() if split}

    # A class may be called 'train', as others are called 'bus' and 'car'.
    is_split = bool(names) and (None not in splits.values() or len(names) > 1)
    if not is_split:
        yield from _of_classes(root, None, kind)
        return

    checks.check_splits(root, {folder.name: split for folder, split in splits.items()}, kind)
    for folder, split in splits.items():
        yield from _of_classes(folder, split, kind)


def _of_classes(root: pathlib.Path, split: str | None, kind: Kind) -> Iterator[Found]:
    folders = _folders(root)
    loose = [e for e in entries(root) if is_visible(e.name) and not e.is_dir()]
    checks.check_folders(root, folders, len(loose), kind)
    if loose:
        report(f"{root}: {len(loose)} files in no class's folder are left out")

    for folder in folders:
        files = find_files(folder)
        checks.check_files(folder, files, kind)
        for path in files:
            yield Found(path, folder.name, split)


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
    return [e for e in entries(root) if e.is_dir() and is_visible(e.name)]


def _name(file: Found, folder: pathlib.Path) -> str:
    path = file.path.relative_to(folder) if file.path.is_relative_to(folder) else file.path
    return f"line {file.line} of {path}" if file.line else str(path)
