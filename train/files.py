"""Paths as a person gives them, and files that are complete whenever the process dies."""

import contextlib
import os

from etils import epath

from train.errors import no_home


def is_local(path: epath.Path) -> bool:
    """Returns whether a path is in a file system, not in a store such as gs://."""
    return "://" not in str(path)


def expand(path: str) -> str:
    """Returns a path with `~` and `~NAME` replaced by the folder they stand for.

    Args:
      path: as a person gave it; an address such as gs:// is returned unchanged.

    Raises:
      BadInput: a home folder of a user that does not exist.
    """
    if "://" in path:
        return path

    # It leaves what it cannot expand unchanged, and a folder named '~x' would be made.
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise no_home(path, expanded.partition("/")[0])

    return expanded


def absolute(path: str) -> str:
    """Returns a path as `expand` does, and from the root on, so that it holds in any folder.

    Args:
      path: as a person gave it; an address such as gs:// is returned unchanged.

    Raises:
      BadInput: a home folder of a user that does not exist.
    """
    return path if "://" in path else os.path.abspath(expand(path))


def as_path(path: str | os.PathLike[str]) -> epath.Path:
    """Returns a path that a person gave, or an address such as gs://, expanded, as an epath.Path.

    Raises:
      BadInput: a home folder of a user that does not exist.
    """
    return epath.Path(expand(os.fspath(path)))


def write_atomic(path: epath.Path, content: str | bytes) -> None:
    """Writes a file that holds the new content or, whenever the process dies, the old content.

    Two processes that write one file at the same time are not kept apart.

    Args:
      path: of the file, in a folder that exists.
      content: its bytes, or its text, which is written in UTF-8.

    Raises:
      OSError: the file cannot be written; the old content is still there.
    """
    data = content.encode() if isinstance(content, str) else content
    if not is_local(path):
        _write_object(path, data)
        return

    # One fixed name: what a process that was killed has left is overwritten by the next.
    temporary = path.parent / f".{path.name}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(data)

            # On the disk before it is renamed: a crash of the machine could else leave an empty
            # file under the new name.
            file.flush()
            os.fsync(file.fileno())

        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _write_object(path: epath.Path, data: bytes) -> None:
    # A store replaces an object only when all of it has arrived.
    try:
        path.write_bytes(data)
    except OSError:
        raise

    # Its client has error types of its own.
    except Exception as error:
        raise OSError(f"{path}: {error}") from error
