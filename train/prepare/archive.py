"""Published files of data sets: fetched, checked against their SHA-256, read without unpacking."""

import dataclasses
import hashlib
import pathlib
import tarfile
import urllib.request
from collections.abc import Collection, Iterable, Iterator

from rich.progress import Progress

from train.prepare.file_checks import (
    check_complete,
    check_members,
    check_no_longer,
    fetching,
    opening,
    unpacking,
)

_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECS = 60.0  # of a server that sends nothing


@dataclasses.dataclass(frozen=True)
class Archive:
    """A file of a data set, as its authors publish it."""

    url: str
    size_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """The file's name, which the address ends with."""
        return self.url.rpartition("/")[2]


def fetch(archive: Archive, folder: pathlib.Path, progress: Progress) -> pathlib.Path:
    """Downloads an archive into an existing folder and returns its path.

    Raises:
      BadInput: no network, an answer that is not the file, or a download cut short or altered.
    """
    path = folder / archive.name
    remedy = "try again, or fetch it by hand and give it, or the folder that holds it, as --archive"

    # Checked while it is written: a large file is not read twice.
    chunks = _with_bar(_download(archive.url, remedy), archive, progress, "fetching")
    with path.open("wb") as file:
        for chunk in _verified(chunks, archive, archive.url, remedy):
            file.write(chunk)

    return path


def check(archive: Archive, path: pathlib.Path, progress: Progress) -> None:
    """Checks a file that was fetched by hand.

    Raises:
      BadInput: the file is missing, truncated or another one.
    """
    remedy = f"fetch {archive.url} again"
    with opening(path, archive.url), path.open("rb") as file:
        chunks = iter(lambda: file.read(_CHUNK_BYTES), b"")
        shown = _with_bar(chunks, archive, progress, "checking")
        for _ in _verified(shown, archive, str(path), remedy):
            pass


def read_members(path: pathlib.Path, names: Collection[str]) -> dict[str, bytes]:
    """Reads files of a tar archive into memory; nothing is unpacked onto the disk.

    Args:
      path: the archive, compressed or not.
      names: of the members to read, folders included.

    Raises:
      BadInput: a member is missing or not a file, or the archive cannot be read.
    """
    members = {}

    # In the archive's own sequence: a compressed one cannot be searched without unpacking all that
    # comes before.
    with unpacking(path), tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.name in names else None
            if content is not None:
                members[member.name] = content.read()

    check_members(path, names, members)
    return members


def _download(url: str, remedy: str) -> Iterator[bytes]:
    with fetching(url, remedy), urllib.request.urlopen(url, timeout=_TIMEOUT_SECS) as response:
        while chunk := response.read(_CHUNK_BYTES):
            yield chunk


def _with_bar(
    chunks: Iterable[bytes], archive: Archive, progress: Progress, action: str
) -> Iterator[bytes]:
    bar = progress.add_task(f"{action} {archive.name}", total=archive.size_bytes)
    for chunk in chunks:
        progress.advance(bar, len(chunk))
        yield chunk


def _verified(
    chunks: Iterable[bytes], archive: Archive, origin: str, remedy: str
) -> Iterator[bytes]:
    """Yields the chunks; raises, after the last one at the latest, if they are another file's."""
    digest, size_bytes = hashlib.sha256(), 0

    for chunk in chunks:
        size_bytes += len(chunk)
        digest.update(chunk)
        yield chunk

        # At once, and not after the last chunk: a server may send without end.
        check_no_longer(origin, size_bytes, archive, remedy)

    check_complete(origin, size_bytes, digest.hexdigest(), archive, remedy)
