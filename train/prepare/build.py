"""One set, prepared in a folder of its own and moved into place when it is complete."""

import contextlib
import fcntl
import io
import pathlib
import shutil
from collections.abc import Iterator, Sequence

import tensorflow_datasets as tfds
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from train.errors import BadInput
from train.files import expand
from train.prepare.archive import Archive, check, fetch
from train.prepare.checks import check_local, check_location, check_prepared
from train.prepare.sets import Source


def prepare(
    source: Source, data_dir: str | pathlib.Path, archive: str | pathlib.Path | None = None
) -> str:
    """Prepares a set, unless it is prepared already; leaves nothing incomplete.

    Args:
      source: the set.
      data_dir: the folder of all prepared sets; created if it is missing.
      archive: the official file, or a folder that holds the official files under their names; None
        to download them.

    Returns:
      What was done, in a line.

    Raises:
      BadInput: the files are missing or not the official ones, there is no network, data_dir cannot
        be written or holds the set in a form that cannot be read.
    """
    check_local(data_dir)
    data_dir = pathlib.Path(expand(str(data_dir)))
    name, version = source.builder.name, str(source.builder.VERSION)
    target = data_dir / name / version
    if target.exists():
        check_prepared(target)
        return f"{name} is prepared already in {target}"

    # In data_dir, and so on its file system, where a folder is renamed at once or not at all.
    unfinished = data_dir / f".{name}-{version}.unfinished"
    try:
        with _exclusive(unfinished) as folder, _progress_bars() as progress:
            files = _official_files(source.archives, archive, folder, progress)
            _build(source.builder(files, progress, data_dir=folder, file_format="array_record"))

            target.parent.mkdir(exist_ok=True)
            (folder / name / version).rename(target)
    except OSError as error:
        raise BadInput(
            f"{data_dir} cannot be written ({error}): make it writable, or give another --data_dir"
        ) from error

    return f"{name} is prepared in {target}"


@contextlib.contextmanager
def _exclusive(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives this process a folder of its own, and removes it at the end, whatever happens."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w", encoding="utf-8") as lock:
        # A lock of the operating system ends with its process, even with a killed one.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(
                f"another process prepares the same set in {folder}: wait until it has ended"
            ) from error

        try:
            # A killed process may have left part of a set.
            for path in folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
            yield folder
        finally:
            shutil.rmtree(folder)


def _progress_bars() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _official_files(
    archives: Sequence[Archive],
    location: str | pathlib.Path | None,
    folder: pathlib.Path,
    progress: Progress,
) -> dict[str, pathlib.Path]:
    """Returns the paths of the official files, checked: at the location, or else downloaded."""
    if location is None:
        return {archive.name: fetch(archive, folder, progress) for archive in archives}

    location = pathlib.Path(expand(str(location)))
    check_location(location, [archive.name for archive in archives])

    is_folder = location.is_dir()
    files = {a.name: location / a.name if is_folder else location for a in archives}
    for archive in archives:
        check(archive, files[archive.name], progress)
    return files


def _build(builder: tfds.core.DatasetBuilder) -> None:
    tfds.disable_progress_bar()

    # The builder announces the unfinished folder as the set's place.
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            builder.download_and_prepare()
        # ArrayRecord's writer reports a full disk in this way.
        except RuntimeError as error:
            raise OSError(str(error)) from error
