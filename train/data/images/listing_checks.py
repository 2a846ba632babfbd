"""What a folder of images must be."""

import contextlib
import pathlib
import unicodedata
from collections.abc import Iterator, Mapping, MutableMapping, Sequence

from train.errors import BadInput

_REMEDY = (
    "give a folder that holds a folder of images per class, such as photos/cat/1.jpg and "
    "photos/dog/2.jpg, or a CSV with the columns file and label"
)


def required(files: str | None) -> str:
    """Returns what config.data.files names; refuses None."""
    if not files:
        raise BadInput(f"config.data.files is missing: {_REMEDY}")
    if "://" in files:
        raise BadInput(f"config.data.files={files}: images are read from a local folder: {_REMEDY}")
    return files


def check_exists(root: pathlib.Path) -> None:
    """Refuses a path that is neither a folder nor a file."""
    if not root.exists():
        raise BadInput(f"config.data.files={root} does not exist: {_REMEDY}")


def check_folders(root: pathlib.Path, folders: Sequence[pathlib.Path], beside: int) -> None:
    """Refuses a folder without a folder per class; `beside`: the files that it holds instead."""
    if not folders:
        holds = f"{beside} files and no folder" if beside else "nothing"
        raise BadInput(f"config.data.files: {root} holds {holds}: {_REMEDY}")


def check_files(folder: pathlib.Path, files: Sequence[pathlib.Path]) -> None:
    """Refuses the folder of a class without a file."""
    if not files:
        raise BadInput(
            f"config.data.files: {folder}, the folder of a class, holds no file: put its images "
            "there, or take the folder away"
        )


def check_classes(root: pathlib.Path, classes: Sequence[str]) -> None:
    """Refuses one class, and classes whose names are alike."""
    if len(classes) == 1:
        raise BadInput(
            f"config.data.files: {root} holds one class, {classes[0]!r}; two or more are needed "
            f"to tell apart: {_REMEDY}"
        )

    # 'é' may be one character or two; some systems take 'Cat' and 'cat' for one folder.
    alike: dict[str, str] = {}
    for name in classes:
        form = unicodedata.normalize("NFC", name).casefold().strip()
        if form in alike:
            raise BadInput(
                f"config.data.files: {root} holds the classes {alike[form]!r} and {name!r}, whose "
                "names are the same but for case or spaces: rename one of them, or put their "
                "images together"
            )
        alike[form] = name


def check_splits(root: pathlib.Path, splits: Mapping[str, str | None]) -> None:
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
                f"the {split} split: put their images together"
            )


def check_train(
    root: pathlib.Path, found: Sequence[tuple[str, str | None]], splits: Sequence[str]
) -> None:
    """Refuses splits without one to train on, and a class that has no training image.

    Args:
      root: the folder or table.
      found: label and split of each file.
      splits: that there are; () if the set has none.
    """
    if not splits:
        return

    if "train" not in splits:
        raise BadInput(
            f"config.data.files: {root} has the splits {', '.join(splits)} and no 'train': put "
            "the images to train on there, or leave the splits out: they are made by a fixed seed"
        )

    trained = {label for label, split in found if split == "train"}
    for label, split in found:
        if label not in trained:
            raise BadInput(
                f"config.data.files: {root} has the class {label!r} in its split {split!r} and not "
                "in 'train': put images of it there, or take the class away"
            )


@contextlib.contextmanager
def reading_table(path: pathlib.Path) -> Iterator[None]:
    """Reports as bad input a table that cannot be read."""
    try:
        yield
    except (OSError, UnicodeError) as error:
        raise BadInput(
            f"config.data.files: {path} is not a CSV in UTF-8 ({error}): {_REMEDY}"
        ) from error


def check_has_rows(path: pathlib.Path, rows: int) -> None:
    """Refuses an empty table."""
    if not rows:
        raise BadInput(f"config.data.files: {path} is empty: {_REMEDY}")


def check_columns(path: pathlib.Path, first: Sequence[str], names_a_file: bool) -> None:
    """Refuses a first line that names neither the columns nor an image and its label."""
    if len(first) != 2 or not names_a_file:
        raise BadInput(
            f"config.data.files: the first line of {path} is {','.join(first)!r}: let it name the "
            "columns, file,label or file,label,split"
        )


def check_row(
    path: pathlib.Path,
    number: int,
    values: Mapping[str, str],
    columns: Sequence[str],
    splits: Mapping[str, str],
) -> None:
    """Refuses a line of a table that lacks a value, or names no split."""
    for column in ("file", "label", *(["split"] if "split" in columns else [])):
        if not values.get(column):
            raise BadInput(f"config.data.files: line {number} of {path} has no {column}: add it")

    split = values.get("split")
    if "split" in columns and str(split).lower() not in splits:
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


def check_readable(classes: Sequence[str], readable: Mapping[str, int], errors: int) -> None:
    """Refuses a folder of which no file, or none of a class, can be read; and one of one image.

    Args:
      classes: their names.
      readable: number of files that can be read, by class.
      errors: number of the others.
    """
    if not any(readable.values()):
        raise BadInput(
            f"config.data.files: none of {errors} files can be read as an image: give files that "
            "Pillow opens, such as JPEG and PNG"
        )
    for name in classes:
        if readable[name] < 2:
            raise BadInput(
                f"config.data.files: the class {name!r} has {readable[name]} image that can be "
                "read: give two or more, or take the class away"
            )


def check_cut(key: str, held_out: int, counts: Mapping[str, int]) -> None:
    """Refuses to hold out images of which each class, divided evenly, would not have one.

    Args:
      key: of the config that says how many are held out.
      held_out: number of images.
      counts: number of images of each class, before.
    """
    few = min(counts, key=lambda name: counts[name])
    if counts[few] < 2:
        raise BadInput(
            f"config.data.files: the class {few!r} has too few images to train, validate and test "
            "on some of it: give more of it, or make folders train/, val/ and test/"
        )
    if not len(counts) <= held_out <= sum(counts.values()) - len(counts):
        raise BadInput(
            f"{key} holds out {held_out} of {sum(counts.values())} images of {len(counts)} "
            f"classes: {len(counts)} to {sum(counts.values()) - len(counts)} are accepted, one or "
            "more of each class on either side"
        )


def check_parts_hold(
    classes: Sequence[str], trained: Mapping[str, int], sizes: Mapping[str, int]
) -> None:
    """Refuses a split, or a class to train on, of which no file can be read.

    Args:
      classes: their names.
      trained: number of training images, by class.
      sizes: number of images, by split.
    """
    for name, size in sizes.items():
        if not size:
            raise BadInput(
                f"config.data.files: no file of the split {name!r} can be read as an image: mend "
                "its files, or take the split away"
            )
    for name in classes:
        if not trained.get(name):
            raise BadInput(
                f"config.data.files: no training image of the class {name!r} can be read: mend its "
                "files, or take the class away"
            )
