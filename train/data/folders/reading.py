"""The files of a folder, read: what can be read of them, and what tells them from others."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from train.data.file_search import report
from train.data.folders.checks import check_readable
from train.data.folders.kinds import Kind
from train.data.folders.listing import LabelledFile, Listing
from train.data.progress import chunks
from train.data.split import Origin

_CHUNK = 256  # files read at a time
_NAMED = 20  # of the files that cannot be read, how many are named


def on_files(
    files: Sequence[LabelledFile], read: Callable[[LabelledFile], Any], description: str
) -> Iterator[Any]:
    """Yields what a function returns for each file, or the exception that it raised."""

    def attempt(file: LabelledFile) -> Any:
        try:
            return read(file)
        # Decoders raise errors of any kind on bytes that they cannot read.
        except Exception as error:
            return error

    # Threads suffice: decoders release the interpreter's lock while they work.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for chunk in chunks(len(files), _CHUNK, description):
            yield from pool.map(attempt, files[chunk.start : chunk.stop])


def good_places(listing: Listing, read: Sequence[Any], kind: Kind) -> list[int]:
    """Returns the places of the files that could be read; the others are named and counted.

    Args:
      listing: of the folder.
      read: what `on_files` yielded for each.
      kind: what they hold.

    Raises:
      BadInput: no file could be read, or fewer than two of a class.
    """
    errors = {
        file.name: found
        for file, found in zip(listing.files, read, strict=True)
        if isinstance(found, Exception)
    }
    for name in list(errors)[:_NAMED]:
        report(f"{name} cannot be read as {kind.article} ({errors[name]}): left out")
    if errors:
        more = f", {_NAMED} of which are named above" if len(errors) > _NAMED else ""
        report(f"{len(errors)} of {len(read)} files cannot be read{more}")

    good = [place for place, found in enumerate(read) if not isinstance(found, Exception)]
    check_readable(listing.classes, _counts(listing, good), len(errors), kind)
    return good


def origin_of(listing: Listing, digests: Sequence[str], good: Sequence[int]) -> Origin:
    """Returns the fingerprint of all files; those that cannot be read are in it by their names.

    Args:
      listing: of the folder.
      digests: of what each file holds; '' of one that cannot be read.
      good: places of the files that can be read.
    """
    digest = hashlib.sha256()
    for file, content in zip(listing.files, digests, strict=True):
        entry = (file.name, listing.classes[file.label], file.split, content)
        digest.update(f"{entry!r}\n".encode())

    return Origin(_counts(listing, good), digest.hexdigest())


def _counts(listing: Listing, good: Sequence[int]) -> dict[str, int]:
    """Number of files of each class that could be read."""
    counts = Counter(listing.files[place].label for place in good)
    return {name: counts[label] for label, name in enumerate(listing.classes)}
