"""Plain text files, found as `train.data.file_search` says, and decoded."""

import codecs
import hashlib
import pathlib
from collections.abc import Mapping, Sequence

from train.data.file_search import find_files, report
from train.data.split import TextOrigin
from train.data.text.checks import check_found, check_given, check_is_text, reading_file
from train.files import absolute


def read_files(pattern: str | None) -> list[str]:
    """Reads a file, the files of a folder or those that match a pattern, sorted by name.

    Args:
      pattern: as `train.data.file_search` describes it; None is refused.

    Returns:
      The text of each file that is not empty.

    Raises:
      BadInput: no pattern, no file with text, or a file that cannot be read or is not text.
    """
    documents = []
    for path in find_files(pathlib.Path(absolute(check_given(pattern)))):
        if text := _read_file(path):
            documents.append(text)
        else:
            report(f"{path}: empty, left out")

    check_found(documents, pattern)
    return documents


def fingerprint(splits: Mapping[str, Sequence[str]]) -> TextOrigin:
    """Returns what tells the documents of the splits from others, their order included."""
    digest, characters = hashlib.sha256(), 0
    for name, documents in splits.items():
        digest.update(f"{name} {len(documents)}\n".encode())

        # With its length: where a document ends is a part of what is read.
        for document in documents:
            content = document.encode()
            digest.update(f"{len(content)}\n".encode() + content)
            characters += len(document)

    return TextOrigin(characters, digest.hexdigest())


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
        report(f"{name}: {invalid} invalid UTF-8 byte{'s' * (invalid > 1)} replaced")
    return texts


def _read_file(path: pathlib.Path) -> str:
    with reading_file(path):
        content = path.read_bytes()
    check_is_text(content, path)

    # A mark of the byte order is not part of the text.
    (text,) = decode([content.removeprefix(codecs.BOM_UTF8)], str(path))
    return text
