"""The records of text sets prepared by tensorflow-datasets."""

from typing import Any

from train.data.progress import chunks
from train.data.text.checks import reading
from train.data.text.files import decode

_CHUNK = 1024  # records read at a time


def read_texts(
    builder: Any, name: str, split: str, text_key: str, label_key: str | None = None
) -> tuple[list[str], list[int]]:
    """Reads a split's texts, and its labels if they have a key.

    Args:
      builder: of a prepared set.
      name: the set's name, for messages.
      split: in tfds' notation, e.g. 'train[:-10]'.
      text_key: the feature that holds the text.
      label_key: the feature that holds the label; None to read none.

    Raises:
      BadInput: records that cannot be read.
    """
    contents: list[bytes] = []
    labels: list[int] = []
    source = builder.as_data_source(split)

    for chunk in chunks(len(source), _CHUNK, f"reading {name}/{split}"):
        # Fetched together: one by one, each record pays for a call of the reader.
        with reading(f"{name}/{split}", chunk):
            records = source.__getitems__(list(chunk))

        for record in records:
            contents.append(record[text_key])
            if label_key is not None:
                labels.append(int(record[label_key]))

    return decode(contents, f"{name}/{split}"), labels
