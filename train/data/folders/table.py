"""A CSV that names labelled files, or holds labelled texts."""

import csv
import io
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from train.data.folders import checks
from train.data.folders.kinds import Kind

# The names of splits in folders and tables -> the trainer's.
SPLITS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


class Found(NamedTuple):
    """A labelled file, or a line of a table that holds the example itself."""

    path: pathlib.Path
    label: str
    split: str | None
    line: int = 0
    text: str | None = None


def read_table(path: pathlib.Path, kind: Kind, columns: Sequence[str]) -> Iterator[Found]:
    """Yields what the lines of a CSV name, or hold.

    Args:
      path: of the table, in whose folder the files lie.
      kind: what is labelled: files, or the texts of one column.
      columns: names of those that hold the example and its label; a column 'split' may be there.

    Raises:
      BadInput: it is no CSV, or lacks columns, labels or splits.
    """
    rows = _rows(path, kind)
    checks.check_has_rows(path, len(rows), kind)
    example, label = needed = [name.strip().lower() for name in columns]
    names_files = kind.column == "file"

    # Without a line of names the first one names a file.
    first = [cell.strip() for cell in rows[0][1]]
    header = [name.lower() for name in first]
    if set(needed) <= set(header):
        checks.check_columns_once(path, header, needed)
        rows = rows[1:]
    else:
        is_example = names_files and len(first) == 2 and (path.parent / first[0]).is_file()
        checks.check_columns(path, first, needed, is_example)
        header = needed
    checks.check_has_rows(path, len(rows), kind)

    # A line without text is left out when the texts are read, as an empty file is.
    filled = [label, *(["split"] if "split" in header else []), *([example] if names_files else [])]
    seen: dict[pathlib.Path, int] = {}
    for number, row in rows:
        whole = dict(zip(header, row, strict=False))
        values = {name: cell.strip() for name, cell in whole.items()}
        checks.check_row(path, number, values, filled, SPLITS)

        split = SPLITS[values["split"].lower()] if "split" in header else None
        if not names_files:
            yield Found(path, values[label], split, number, whole.get(example, ""))
            continue

        file = path.parent / values[example]
        checks.check_once(path, number, file, seen)
        yield Found(file, values[label], split)


def _rows(path: pathlib.Path, kind: Kind) -> list[tuple[int, list[str]]]:
    """The rows that are not empty, each with the number of its first line."""
    limit = csv.field_size_limit()
    try:
        # Texts may be longer than the cells that the library takes by default.
        csv.field_size_limit(sys.maxsize)
        with checks.reading_table(path, kind):
            # Some programs begin a CSV with a mark of the byte order. A cell in quotes may hold
            # ends of lines, which are a part of it.
            reader = csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""))

            rows, line = [], 1
            for row in reader:
                if row:
                    rows.append((line, row))
                line = reader.line_num + 1
            return rows
    finally:
        csv.field_size_limit(limit)
