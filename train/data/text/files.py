"""Plain text files: found by name or by pattern, and decoded.

One rule for all ways of naming them:

- A part of the path that exists is taken by its name, whatever characters it holds: 'a[1].txt' and
  'texts [old]/*.txt' name a file and a folder with brackets. In one that does not, `*`, `?` and
  `[...]` stand for other characters, and `**` for folders at any depth, none included. A folder is
  short for FOLDER/**: all files in it, at any depth.
- Hidden files and folders are left out where they are not named.
- Symbolic links are followed, to files and to folders, and a file is read once, whatever leads to
  it; a link that leads nowhere is reported and left out.
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
      pattern: as above; None is refused.

    Returns:
      The text of each file that is not empty.

    Raises:
      BadInput: no pattern, no file with text, or one that cannot be read or is no text.
    """
    if not pattern:
        raise BadInput(f"config.data.files is missing: {_REMEDY}")
    documents = []
    for path in _find_files(pathlib.Path(absolute(pattern))):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BadInput(f"{path} cannot be read ({error.strerror}): leave it out") from error
        if b"\0" in content:
            raise BadInput(f"{path} is no text (it holds NUL bytes): leave it out")
        text = decode([content.removeprefix(codecs.BOM_UTF8)], str(path))[0]
        if text:
            documents.append(text)
        else:
            _say(f"{path}: empty, left out")
    if not documents:
        raise BadInput(f"config.data.files={pattern!r}: no file with text there: {_REMEDY}")
    return documents


def decode(contents: Sequence[bytes], name: str) -> list[str]:
    """Decodes UTF-8; invalid bytes become U+FFFD and are reported on standard error.

    Args:
      contents: the texts' bytes.
      name: what the report calls them.
    """
    texts, invalid = [], 0
    for content in contents:
        try:
            texts.append(content.decode())
        except UnicodeDecodeError:
            texts.append(content.decode(errors="replace"))
            invalid += len(content) - len(content.decode(errors="ignore").encode())
    if invalid:
        _say(f"{name}: {invalid} invalid UTF-8 byte{'s' * (invalid > 1)} replaced")
    return texts


def _find_files(place: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files that an absolute path names or matches, sorted, each once."""
    parts = place.relative_to(place.anchor).parts
    rest = (*parts, _ANY_DEPTH) if os.path.isdir(place) else parts
    files: dict[pathlib.Path, pathlib.Path] = {}
    for path in sorted(set(_match(pathlib.Path(place.anchor), rest))):
        if os.path.isfile(path):
            files.setdefault(path.resolve(), path)
        elif path.is_symlink() and not path.exists():
            _say(f"{path}: a link to nothing, left out")
    return list(files.values())


def _match(path: pathlib.Path, rest: Sequence[str]) -> Iterator[pathlib.Path]:
    """Yields what lies under a path and matches the parts of a pattern, one a level."""
    if not rest:
        yield path
    elif os.path.exists(path / rest[0]):  # False, too, for names that cannot be
        yield from _match(path / rest[0], rest[1:])
    elif rest[0] == _ANY_DEPTH:
        for folder in _folders(path):
            yield from _match(folder, rest[1:] or ["*"])
    else:
        for entry in _entries(path):
            if fnmatch.fnmatchcase(entry.name, rest[0]) and _is_shown(entry.name, rest[0]):
                yield from _match(entry, rest[1:])


def _folders(top: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a folder and all in it that are not hidden, links followed, each once."""
    seen, waiting = set(), [top]
    while waiting:
        folder = waiting.pop()
        real = folder.resolve()
        if real in seen or not folder.is_dir():  # a link may lead back to where it came from
            continue
        seen.add(real)
        yield folder
        waiting += [entry for entry in _entries(folder) if _is_shown(entry.name)]


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
    """What lies in a folder, sorted; nothing in what is none."""
    try:
        return sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise BadInput(f"{folder} cannot be read ({error.strerror}): leave it out") from error


def _is_shown(name: str, pattern: str = "*") -> bool:
    return not name.startswith(".") or pattern.startswith(".")


def _say(message: str) -> None:
    print(message, file=sys.stderr)  # rich would break a long name in two
