"""Paths as a person gives them, and files that are whole whenever the process dies."""

import contextlib
import os

from etils import epath

from train.errors import BadInput


def is_local(path: epath.Path) -> bool:
    """Returns whether a path is one of a file system, not of a store such as gs://."""
    return "://" not in str(path)


def expand(path: str) -> str:
    """Returns a path with `~` and `~NAME` replaced by the folder they stand for.

    Args:
      path: as a person gave it; an address such as gs:// is returned as it is.

    Raises:
      BadInput: a home of no one's.
    """
    if "://" in path:
        return path
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        home = expanded.partition("/")[0]
        raise BadInput(
            f"{path}: {home} is nobody's home: give the whole path, or ./{path} for a name that "
            "begins with ~"
        )
    return expanded


def absolute(path: str) -> str:
    """Returns a path as `expand` does, from the root on, so that it holds in any current folder.

    Args:
      path: as a person gave it; an address such as gs:// is returned as it is.

    Raises:
      BadInput: a home of no one's.
    """
    return path if "://" in path else os.path.abspath(expand(path))


def as_path(path: str | os.PathLike[str]) -> epath.Path:
    """Returns a path that a person gave, expanded, to be worked with.

    Args:
      path: of a file or a folder, or an address such as gs://.

    Raises:
      BadInput: a home of no one's.
    """
    return epath.Path(expand(os.fspath(path)))


def write_atomic(path: epath.Path, content: str | bytes) -> None:
    """Writes a file that holds the new content or, whenever the process dies, what it held before.

    It is written beside the old one, as .NAME.tmp, and takes its place when it is on the disk. Such
    a file of a process that was killed is overwritten by the next. Two processes that write one
    file at the same time are not kept apart.

    Args:
      path: of the file, in a folder that exists; what is at a gs:// address is always whole.
      content: its bytes, or its text, which is written in UTF-8.

    Raises:
      OSError: the file cannot be written; what was there is there still.
    """
    data = content.encode() if isinstance(content, str) else content
    if not is_local(path):
        _write_object(path, data)
        return
    beside = path.parent / f".{path.name}.tmp"
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def _write_object(path: epath.Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError:
        raise
    except Exception as error:  # a store's client has errors of its own
        raise OSError(f"{path}: {error}") from error
