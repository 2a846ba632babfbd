"""What a folder of labelled files must be."""

import contextlib
import csv
import pathlib
import unicodedata
from collections.abc import Iterator, Mapping, MutableMapping, Sequence

from train.data.folders.kinds import Kind
from train.errors import BadInput


def required(files: str | None, kind: Kind) -> str:
    """Returns what config.data.files names; refuses None."""
    if not files:
        raise BadInput(f"config.data.files is missing: {kind.remedy}")
    if "://" in files:
        raise BadInput(
            f"config.data.files={files}: {kind.many} are read from a local folder: {kind.remedy}"
        )
    return files


def check_exists(root: pathlib.Path, kind: Kind) -> None:
    """Refuses a path that is neither a folder nor a file."""
    if not root.exists():
        raise BadInput(f"config.data.files={root} does not exist: {kind.remedy}")


def check_folders(
    root: pathlib.Path, folders: Sequence[pathlib.Path], loose: int, kind: Kind
) -> None:
    """Refuses a folder without a folder per class; `loose`: how many files it holds instead."""
    if not folders:
        holds = f"{loose} files and no folder" if loose else "nothing"
        raise BadInput(f"config.data.files: {root} holds {holds}: {kind.remedy}")


def check_files(folder: pathlib.Path, files: Sequence[pathlib.Path], kind: Kind) -> None:
    """Refuses the folder of a class without a file."""
    if not files:
        raise BadInput(
            f"config.data.files: {folder}, the folder of a class, holds no file: put its "
            f"{kind.many} there, or take the folder away"
        )


def check_classes(root: pathlib.Path, classes: Sequence[str], kind: Kind) -> None:
    """Refuses one class, and classes whose names are alike."""
    if len(classes) == 1:
        raise BadInput(
            f"config.data.files: {root} holds one class, {classes[0]!r}; two or more are needed "
            f"to tell apart: {kind.remedy}"
        )

    # 'é' may be one character or two; some systems take 'Cat' and 'cat' for one folder.
    alike: dict[str, str] = {}
    for name in classes:
        form = unicodedata.normalize("NFC", name).casefold().strip()
        if form in alike:
            raise BadInput(
                f"config.data.files: {root} holds the classes {alike[form]!r} and {name!r}, whose "
                "names are the same but for case or spaces: rename one of them, or put their "
                f"{kind.many} together"
            )
        alike[form] = name


def check_splits(root: pathlib.Path, splits: Mapping[str, str | None], kind: Kind) -> None:
    """Refuses folders of splits with others among them, without train/, or two of one split."""
    others = [name for name, split in splits.items() if split is None]
    if others:
        raise BadInput(
            f"config.data.files: {root} holds folders of splits and, among them, {others[0]!r}: "
            "keep train/, val/ and test/ alone there, each with a folder per class"
        )
    names = {split: name for name, split in splits.items()}
    for name, split in splits.items():
        if names[split] != name:
            raise BadInput(
                f"config.data.files: {root} holds {name!r} and {names[split]!r}, both of which are "
                f"the {split} split: put their {kind.many} together"
            )


def check_train(
    root: pathlib.Path,
    found: Sequence[tuple[str, str | None]],
    splits: Sequence[str],
    kind: Kind,
) -> None:
    """Refuses splits without one to train on, and a class that has no training example.

    Args:
      root: the folder or table.
      found: label and split of each file.
      splits: that there are; () if the set has none.
      kind: what the files hold.
    """
    if not splits:
        return

    if "train" not in splits:
        raise BadInput(
            f"config.data.files: {root} has the splits {', '.join(splits)} and no 'train': put "
            f"the {kind.many} to train on there, or leave the splits out: they are made by a fixed "
            "seed"
        )

    trained = {label for label, split in found if split == "train"}
    for label, split in found:
        if label not in trained:
            raise BadInput(
                f"config.data.files: {root} has the class {label!r} in its split {split!r} and not "
                f"in 'train': put {kind.many} of it there, or take the class away"
            )


@contextlib.contextmanager
def reading_table(path: pathlib.Path, kind: Kind) -> Iterator[None]:
    """Reports as bad input a table that cannot be read."""
    try:
        yield
    except (OSError, UnicodeError, csv.Error) as error:
        raise BadInput(
            f"config.data.files: {path} is not a CSV in UTF-8 ({error}): {kind.remedy}"
        ) from error


def check_has_rows(path: pathlib.Path, rows: int, kind: Kind) -> None:
    """Refuses an empty table."""
    if not rows:
        raise BadInput(f"config.data.files: {path} is empty: {kind.remedy}")


def check_columns(
    path: pathlib.Path, first: Sequence[str], needed: Sequence[str], is_example: bool
) -> None:
    """Refuses a first line that names neither the columns nor an example and its label.

    Args:
      path: of the table.
      first: the cells of its first line.
      needed: the columns, of the example and of the label.
      is_example: whether the line is one of two cells that hold an example and its label.
    """
    if not is_example:
        columns = ",".join(needed)
        own = ", or name yours by config.data.text_key and config.data.label_key"
        raise BadInput(
            f"config.data.files: the first line of {path} is {','.join(first)[:80]!r}: let it name "
            f"the columns, {columns} or {columns},split{'' if needed[0] == 'file' else own}"
        )


def check_columns_once(path: pathlib.Path, columns: Sequence[str], needed: Sequence[str]) -> None:
    """Refuses a column that is needed and stands there twice, or is to be two things."""
    for name in (*needed, "split"):
        if columns.count(name) > 1 or (*needed, "split").count(name) > 1:
            raise BadInput(
                f"config.data.files: {path} has to have one column {name!r} for one purpose: its "
                f"columns are {', '.join(columns)}, of which {', '.join(needed)} hold the example "
                "and its label, and 'split' its split; name each once"
            )


def check_row(
    path: pathlib.Path,
    number: int,
    values: Mapping[str, str],
    needed: Sequence[str],
    splits: Mapping[str, str],
) -> None:
    """Refuses a line of a table that lacks a value that is needed, or names no split."""
    for column in needed:
        if not values.get(column):
            raise BadInput(f"config.data.files: line {number} of {path} has no {column}: add it")

    split = values.get("split")
    if "split" in needed and str(split).lower() not in splits:
        raise BadInput(
            f"config.data.files: line {number} of {path} has the split {split!r}: train, val and "
            "test are accepted"
        )


def check_once(
    path: pathlib.Path, number: int, file: pathlib.Path, seen: MutableMapping[pathlib.Path, int]
) -> None:
    """Refuses a file that a table names twice; notes the file and its line in `seen`."""
    first = seen.setdefault(file.resolve(), number)
    if first != number:
        raise BadInput(
            f"config.data.files: lines {first} and {number} of {path} name the same file, "
            f"{file.name}: leave one of them out"
        )


def check_readable(
    classes: Sequence[str], readable: Mapping[str, int], errors: int, kind: Kind
) -> None:
    """Refuses a folder of which no file, or none of a class, can be read; and one of one example.

    Args:
      classes: their names.
      readable: number of files that can be read, by class.
      errors: number of the others.
      kind: what the files hold.
    """
    if not any(readable.values()):
        raise BadInput(
            f"config.data.files: none of {errors} files can be read as {kind.article}: "
            f"{kind.readable}"
        )
    for name in classes:
        if readable[name] < 2:
            raise BadInput(
                f"config.data.files: the class {name!r} has {readable[name]} {kind.one} that can "
                "be read: give two or more, or take the class away"
            )


def check_cut(key: str, held_out: int, counts: Mapping[str, int], kind: Kind) -> None:
    """Refuses to hold out examples of which each class, divided evenly, would not have one.

    Args:
      key: of the config that says how many are held out.
      held_out: number of examples.
      counts: number of examples of each class, before.
      kind: what the files hold.
    """
    few = min(counts, key=lambda name: counts[name])
    if counts[few] < 2:
        raise BadInput(
            f"config.data.files: the class {few!r} has too few {kind.many} to train, validate and "
            "test on some of it: give more of it, or make folders train/, val/ and test/"
        )
    if not len(counts) <= held_out <= sum(counts.values()) - len(counts):
        raise BadInput(
            f"{key} holds out {held_out} of {sum(counts.values())} {kind.many} of {len(counts)} "
            f"classes: {len(counts)} to {sum(counts.values()) - len(counts)} are accepted, one or "
            "more of each class on either side"
        )


def check_parts_hold(
    classes: Sequence[str], trained: Mapping[str, int], sizes: Mapping[str, int], kind: Kind
) -> None:
    """Refuses a split, or a class to train on, of which no file can be read.

    Args:
      classes: their names.
      trained: number of training examples, by class.
      sizes: number of examples, by split.
      kind: what the files hold.
    """
    for name, size in sizes.items():
        if not size:
            raise BadInput(
                f"config.data.files: no file of the split {name!r} can be read as {kind.article}: "
                "mend its files, or take the split away"
            )
    for name in classes:
        if not trained.get(name):
            raise BadInput(
                f"config.data.files: no training {kind.one} of the class {name!r} can be read: "
                "mend its files, or take the class away"
            )
