"""Text sets prepared by tensorflow-datasets: which features are read, and their records."""

from typing import Any

import tensorflow_datasets as tfds

from train.data.cuts import record_place
from train.data.progress import chunks
from train.data.text.checks import (
    check_label_key,
    check_one_text,
    check_text_key,
    unreadable,
)
from train.data.text.files import decode

_TEXT_KEYS = ("text", "sentence")  # the first of these, where a set has several texts

_CHUNK = 1024  # records read at a time


def find_text_key(builder: Any, key: str | None) -> str:
    """Returns the name of the feature that holds the text.

    Args:
      builder: of a prepared set.
      key: the feature that the config names; None to find it.

    Raises:
      BadInput: the key is not a text, or without a key the set has no text, or several of them and
        none under a usual name.
    """
    features: dict[str, Any] = dict(builder.info.features)
    texts = [name for name in features if isinstance(features[name], tfds.features.Text)]

    if key is not None:
        check_text_key(builder.name, features, texts, key)
        return key

    check_one_text(builder.name, features, texts, _TEXT_KEYS)
    return texts[0] if len(texts) == 1 else next(name for name in _TEXT_KEYS if name in texts)


def class_names(builder: Any, key: str) -> tuple[str, ...]:
    """Returns the names of the classes of the feature that holds the label.

    Raises:
      BadInput: the key is not a class label.
    """
    features: dict[str, Any] = dict(builder.info.features)
    check_label_key(builder.name, features, key)
    return tuple(features[key].names)


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
        for record in _read(source, chunk, f"{name}/{split}"):
            contents.append(record[text_key])
            if label_key is not None:
                labels.append(int(record[label_key]))

    return decode(contents, f"{name}/{split}"), labels


def _read(source: Any, chunk: range, split: str) -> list[Any]:
    # Records are fetched together: one by one, each pays for a call of the reader.
    try:
        return source.__getitems__(list(chunk))
    # One bad record fails the whole read, with whatever the format's library raises: read again one
    # by one to find it.
    except Exception:
        return [_read_record(source, place, split) for place in chunk]


def _read_record(source: Any, place: int, split: str) -> Any:
    try:
        return source[place]
    except Exception as error:
        raise unreadable(f"{split}: record {place}", error, record_place(source, place)) from error
