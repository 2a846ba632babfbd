"""Plain text files: found by name or by pattern, and decoded.

The same rule holds for a file, a folder and a pattern:

- A part of the path that exists is taken by its name, whatever characters it holds: 'a[1].txt' and
  'texts [old]/*.txt' name a file and a folder with brackets. In a part that does not exist, `*`,
  `?` and `[...]` stand for other characters, and `**` for any number of nested folders, including
  zero. A folder is short for FOLDER/**: all files in it, at any depth.
- Hidden files and folders are left out unless they are named.
- Symbolic links are followed, to files and to folders, and a file is read once, however many paths
  lead to it; a link to nothing is reported and left out.
"""

import codecs
import fnmatch
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

from train.errors import BadInput
from train.files import absolute

_ANY_DEPTH = "**"
_REMEDY = "give a file, a folder or a pattern such as 'texts/*.txt'"


def read_files(pattern: str | None) -> list[str]:
    """Reads a file, the files of a folder or those that match a pattern, sorted by name.

    Args:
      pattern: as described above; None is refused.

    Returns:
      The text of each file that is not empty.

    Raises:
      BadInput: no pattern, no file with text, or a file that cannot be read or is not text.
    """
    if not pattern:
        raise BadInput(f"config.data.files is missing: {_REMEDY}")

    documents = []
    for path in _find_files(pathlib.Path(absolute(pattern))):
        if text := _read_file(path):
            documents.append(text)
        else:
            _report(f"{path}: empty, left out")

    if not documents:
        raise BadInput(f"config.data.files={pattern!r}: no file with text there: {_REMEDY}")
    return documents


def decode(contents: Sequence[bytes], name: str) -> list[str]:
    """Decodes UTF-8; invalid bytes become U+FFFD and are reported on standard error.

    Args:
      contents: the bytes of each text.
      name: of the file or split, for the report.
    """
    texts, invalid = [], 0
    for content in contents:
        try:
            texts.append(content.decode())
        except UnicodeDecodeError:
            texts.append(content.decode(errors="replace"))

            # One U+FFFD may replace several bytes: count what decoding leaves out instead.
            invalid += len(content) - len(content.decode(errors="ignore").encode())

    if invalid:
        _report(f"{name}: {invalid} invalid UTF-8 byte{'s' * (invalid > 1)} replaced")
    return texts


def _read_file(path: pathlib.Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): leave it out") from error

    # Images, archives and the like hold NUL bytes, and no text does.
    if b"\0" in content:
        raise BadInput(f"{path} is not text (it holds NUL bytes): leave it out")

    # A mark of the byte order is not part of the text.
    (text,) = decode([content.removeprefix(codecs.BOM_UTF8)], str(path))
    return text


def _find_files(pattern: pathlib.Path) -> list[pathlib.Path]:
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
            _report(f"{path}: a link to nothing, left out")
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
        for entry in _entries(path):
            if fnmatch.fnmatchcase(entry.name, part) and _is_visible(entry.name, part):
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
        pending += [entry for entry in _entries(folder) if _is_visible(entry.name)]


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the sorted contents of a folder; empty if it is not a folder."""
    try:
        return sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise BadInput(f"{folder} cannot be read ({error.strerror}): leave it out") from error


def _is_visible(name: str, pattern: str = "*") -> bool:
    return not name.startswith(".") or pattern.startswith(".")


def _report(message: str) -> None:
    # Not by rich, which would break a long path over two lines.
    print(message, file=sys.stderr)
