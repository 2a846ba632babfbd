"""Files: found by name or by pattern.

The same rule holds for a file, a folder and a pattern:

- A part of the path that exists is taken by its name, whatever characters it holds: 'a[1].txt' and
  'texts [old]/*.txt' name a file and a folder with brackets. In a part that does not exist, `*`,
  `?` and `[...]` stand for other characters, and `**` for any number of nested folders, including
  zero. A folder is short for FOLDER/**: all files in it, at any depth.
- Hidden files and folders are left out unless they are named.
- Symbolic links are followed, to files and to folders, and a file is read once, however many paths
  lead to it; a link to nothing is reported and left out.
"""

import fnmatch
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

from train.errors import BadInput

_ANY_DEPTH = "**"


def find_files(pattern: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files that an absolute path names or matches, sorted, each once."""
    parts = pattern.relative_to(pattern.anchor).parts
    if os.path.isdir(pattern):
        parts = (*parts, _ANY_DEPTH)

    # By their real paths: a file is read once, however many links lead to it.
    files: dict[pathlib.Path, pathlib.Path] = {}
    for path in sorted(set(_match(pathlib.Path(pattern.anchor), parts))):
        if os.path.isfile(path):
            files.setdefault(path.resolve(), path)
        elif path.is_symlink() and not path.exists():
            report(f"{path}: a link to nothing, left out")
    return list(files.values())


def _match(path: pathlib.Path, parts: Sequence[str]) -> Iterator[pathlib.Path]:
    """Yields the paths below `path` that match the parts of a pattern, one part per level."""
    if not parts:
        yield path
        return

    # Names come before patterns, so that a folder with brackets in its name can be given.
    # os.path.exists returns False, where pathlib raises, for names that are too long.
    part, remaining = parts[0], parts[1:]
    if os.path.exists(path / part):
        yield from _match(path / part, remaining)
    elif part == _ANY_DEPTH:
        for folder in _folders(path):
            yield from _match(folder, remaining or ["*"])
    else:
        for entry in entries(path):
            if fnmatch.fnmatchcase(entry.name, part) and is_visible(entry.name, part):
                yield from _match(entry, remaining)


def _folders(top: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a folder and all visible folders in it, links followed, each once."""
    seen, pending = set(), [top]
    while pending:
        folder = pending.pop()
        real = folder.resolve()

        # A link may lead back to a folder above it.
        if real in seen or not folder.is_dir():
            continue

        seen.add(real)
        yield folder
        pending += [entry for entry in entries(folder) if is_visible(entry.name)]


def entries(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the sorted contents of a folder, hidden ones too; empty if it is not a folder."""
    try:
        return sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise BadInput(f"{folder} cannot be read ({error.strerror}): leave it out") from error


def is_visible(name: str, pattern: str = "*") -> bool:
    """Returns whether a name, or the pattern that it matches, says that it is no hidden file."""
    return not name.startswith(".") or pattern.startswith(".")


def report(message: str) -> None:
    """Prints a line to standard error."""
    # Not by rich, which would break a long path over two lines.
    print(message, file=sys.stderr)
