"""Prepares a set of tensorflow-datasets for reading, without TensorFlow.

    python -m train.prepare cifar100
    python -m train.prepare cifar100 --data_dir=data --archive=cifar-100-binary.tar.gz

Sets: cifar10, cifar100, mnist, fashion_mnist, tiny_shakespeare. Their official files are
downloaded, or taken from --archive, checked, and written as ArrayRecord files that
tensorflow-datasets itself reads. A set appears in data_dir when it is complete, and not before; one
that is there already is left alone.
Exit codes: 0 done, 1 failed, 2 bad input.
"""

import contextlib
import dataclasses
import fcntl
import io
import pathlib
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds
from absl import flags
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from tensorflow_datasets.core.constants import DATA_DIR

from odeformer.errors import unknown
from train import command_line
from train.errors import BadInput
from train.files import expand
from train.prepare.archive import Archive, check, fetch
from train.prepare.cifar import Cifar10, Cifar100
from train.prepare.mnist import MNIST, FashionMNIST
from train.prepare.shakespeare import TinyShakespeare

BUILDERS = (Cifar10, Cifar100, MNIST, FashionMNIST, TinyShakespeare)

FLAGS = flags.FlagValues()
command_line.define_path(
    "data_dir",
    f"Folder of the prepared sets; by default that of tensorflow-datasets, {DATA_DIR}.",
    FLAGS,
)
command_line.define_path(
    "archive",
    "The set's official file, or a folder that holds its files; by default they are downloaded.",
    FLAGS,
)


@dataclasses.dataclass(frozen=True)
class Source:
    """A set that can be prepared: its builder, and the published files that it is built from."""

    builder: type[Cifar10] | type[MNIST] | type[TinyShakespeare]
    archives: tuple[Archive, ...]


def find(name: str) -> Source:
    """Returns the set of that name.

    Raises:
      BadInput: it is not one of those that can be prepared here; the message names them.
    """
    if name == "imagenet2012":
        raise BadInput(
            "imagenet2012 is not prepared here: prepare it once with tensorflow-datasets and "
            "TensorFlow (`tfds build imagenet2012 --file_format=array_record`, with the official "
            "archives), then read it where it lies, with --config.data.data_dir"
        )
    by_name = {builder.name: builder for builder in BUILDERS}
    if name not in by_name:
        raise BadInput(
            f"{unknown('set', name, by_name)} Others are prepared with tensorflow-datasets "
            "and TensorFlow."
        )
    builder = by_name[name]
    recorded: Any = tfds.builder_cls(name).url_infos  # of the official files
    archives = (Archive(url, int(file.size), file.checksum) for url, file in recorded.items())
    return Source(builder, tuple(archives))


def prepare(
    source: Source, data_dir: str | pathlib.Path, archive: str | pathlib.Path | None = None
) -> str:
    """Prepares a set, unless it is prepared already; nothing half-made is left behind.

    Args:
      source: the set.
      data_dir: the folder of all prepared sets; made where it is missing.
      archive: the official file, or a folder that holds the official files under their names; None
        to download them.

    Returns:
      What was done, in a line.

    Raises:
      BadInput: the files are missing or not the official ones, there is no network, data_dir cannot
        be written or holds the set in a form that cannot be read.
    """
    if "://" in str(data_dir):
        raise BadInput(f"--data_dir={data_dir} is not local: prepare into a local folder, copy it")
    data_dir = pathlib.Path(expand(str(data_dir)))
    name, version = source.builder.name, str(source.builder.VERSION)
    target = data_dir / name / version
    if target.exists():
        _check_prepared(target)
        return f"{name} is prepared already in {target}"
    try:
        with (
            _alone_in(data_dir / f".{name}-{version}.unfinished") as folder,
            _bars() as progress,
        ):
            files = _locate(source.archives, archive, folder, progress)
            _build(source.builder(files, progress, data_dir=folder, file_format="array_record"))
            target.parent.mkdir(exist_ok=True)
            (folder / name / version).rename(target)
    except OSError as error:
        raise BadInput(
            f"{data_dir} cannot be written ({error}): make it so, or give another --data_dir"
        ) from error
    return f"{name} is prepared in {target}"


def _check_prepared(target: pathlib.Path) -> None:
    """Refuses what lies there if it cannot be read; it may be another program's."""
    try:
        found: Any = tfds.builder_from_directory(target).info.file_format
    except Exception as error:  # whatever tensorflow-datasets says of a broken folder
        raise BadInput(f"{target} is there, but holds no prepared set: remove it") from error
    if found != tfds.core.FileFormat.ARRAY_RECORD:
        raise BadInput(
            f"{target} is there in the file format {found.value}, which takes "
            "TensorFlow to read: give another --data_dir"
        )


@contextlib.contextmanager
def _alone_in(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives this process a folder of its own, and removes it at the end, whatever happens.

    Folders that a killed process left in it are removed first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(
                f"another process prepares the same set in {folder}: wait until it has ended"
            ) from error
        try:
            for path in folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
            yield folder
        finally:
            shutil.rmtree(folder)


def _bars() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _locate(
    archives: Sequence[Archive],
    given: str | pathlib.Path | None,
    folder: pathlib.Path,
    progress: Progress,
) -> dict[str, pathlib.Path]:
    """Returns the paths of the official files, checked: those given, or fetched into the folder."""
    if given is None:
        return {archive.name: fetch(archive, folder, progress) for archive in archives}
    given = pathlib.Path(expand(str(given)))
    if len(archives) > 1 and not given.is_dir():
        names = ", ".join(archive.name for archive in archives)
        raise BadInput(f"--archive={given} is not a folder: give one that holds {names}")
    files = {
        archive.name: given / archive.name if given.is_dir() else given for archive in archives
    }
    for archive in archives:
        check(archive, files[archive.name], progress)
    return files


def _build(builder: tfds.core.DatasetBuilder) -> None:
    tfds.disable_progress_bar()
    # It announces the unfinished folder as the place of the set.
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            builder.download_and_prepare()
        except RuntimeError as error:  # so ArrayRecord's writer tells of a full disk
            raise OSError(str(error)) from error


def main(argv: Sequence[str]) -> None:
    """The program."""
    names = command_line.parse(argv, FLAGS)
    if len(names) != 1:
        raise BadInput(
            f"give one set, of {', '.join(builder.name for builder in BUILDERS)}, e.g. "
            "python -m train.prepare cifar100"
        )
    # A polite kill cleans up as an interrupt does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(prepare(find(names[0]), FLAGS.data_dir or DATA_DIR, FLAGS.archive))


if __name__ == "__main__":
    sys.exit(command_line.run(main, sys.argv, FLAGS, __doc__))
