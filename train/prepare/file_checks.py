"""Whether the files of a set are the published ones, and hold what their format says."""

import contextlib
import gzip
import http.client
import math
import pathlib
import tarfile
import zlib
from collections.abc import Collection, Iterator, Sequence, Sized
from typing import Protocol

from train.errors import BadInput


class Published(Protocol):
    """What is known of a published file."""

    @property
    def name(self) -> str:
        """The file's name."""
        ...

    @property
    def size_bytes(self) -> int:
        """Its size."""
        ...

    @property
    def sha256(self) -> str:
        """Its checksum, in hexadecimal digits."""
        ...


@contextlib.contextmanager
def fetching(url: str, remedy: str) -> Iterator[None]:
    """Reports as bad input that an address cannot be fetched."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise BadInput(f"{url} cannot be fetched ({error}): {remedy}") from error


@contextlib.contextmanager
def opening(path: pathlib.Path, url: str) -> Iterator[None]:
    """Reports as bad input that a file, given in place of an address, cannot be read."""
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"--archive: {path} cannot be read ({error}): fetch {url} and give its path"
        ) from error


@contextlib.contextmanager
def unpacking(path: pathlib.Path) -> Iterator[None]:
    """Reports as bad input that a compressed file, or a tar archive, cannot be unpacked."""
    try:
        yield
    except (gzip.BadGzipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise BadInput(f"{path} cannot be unpacked ({error}): fetch it again") from error


def check_no_longer(origin: str, size_bytes: int, published: Published, remedy: str) -> None:
    """Refuses what has more bytes than the published file."""
    if size_bytes > published.size_bytes:
        raise BadInput(
            f"{origin} is longer than {published.name}, which has {published.size_bytes} bytes: "
            f"{remedy}"
        )


def check_complete(
    origin: str, size_bytes: int, sha256: str, published: Published, remedy: str
) -> None:
    """Refuses what has fewer bytes than the published file, or others."""
    if size_bytes < published.size_bytes:
        raise BadInput(
            f"{origin} is truncated: {size_bytes} of the {published.size_bytes} bytes of "
            f"{published.name}: {remedy}"
        )
    if sha256 != published.sha256:
        raise BadInput(
            f"{origin} has the SHA-256 {sha256}; that of {published.name} is "
            f"{published.sha256}: {remedy}"
        )


def check_members(path: pathlib.Path, names: Collection[str], found: Collection[str]) -> None:
    """Refuses an archive that lacks some of the files that are named."""
    missing = sorted(set(names) - set(found))
    if missing:
        raise BadInput(f"{path} lacks {', '.join(missing)}: give the archive of this set")


def check_idx(path: pathlib.Path, content: bytes, magic: bytes, shape: Sequence[int]) -> None:
    """Refuses bytes that are not a file of the IDX format: a magic number, sizes, then uint8."""
    header = len(magic) + 4 * len(shape)
    if content[: len(magic)] != magic or len(content) != header + math.prod(shape):
        raise BadInput(f"{path} is not an IDX file of uint8 with {len(shape)} axes")


def check_pairs(
    images: Sized, image_path: pathlib.Path, labels: Sized, label_path: pathlib.Path
) -> None:
    """Refuses images and labels that differ in number."""
    if len(images) != len(labels):
        raise BadInput(
            f"{image_path} holds {len(images)} images, {label_path} {len(labels)} labels: give "
            "files of the same set"
        )
