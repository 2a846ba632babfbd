"""What a set of texts must hold, and which keys of its config have an effect."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from odeformer.errors import unknown
from train.config.data import PACKINGS, LanguageDataConfig, SentenceDataConfig
from train.config.tables import DOCUMENT_SETS
from train.data.text.tokenizer import Tokenizer
from train.errors import BadInput

_REMEDY = "give a file, a folder or a pattern such as 'texts/*.txt'"


def check_keys(config: LanguageDataConfig) -> None:
    """Refuses keys that would be ignored."""
    builtin = config.name in ("pydocs", "files")
    if config.name in DOCUMENT_SETS and not builtin:
        return  # somebody's own set, which may read any of them

    is_files = config.name == "files"
    is_prepared = config.name not in ("pydocs", "files")

    for key, has_effect in (
        ("files", is_files),
        ("data_dir", is_prepared),
        ("text_key", is_prepared),
    ):
        value = getattr(config, key)
        if value is not None and not has_effect:
            raise BadInput(
                f"config.data.{key}={value!r} has no effect with config.data.name={config.name!r}: "
                + ("set the name to 'files'" if key == "files" else "leave it out")
            )


def check_folder_keys(config: SentenceDataConfig) -> None:
    """Refuses keys that have no effect on a folder of texts, or on a table of them."""
    is_folder = config.files is not None and os.path.isdir(config.files)
    for key, has_effect, otherwise in (
        ("data_dir", config.data_dir is None, "config.data.files names the folder"),
        ("text_key", config.text_key is None or not is_folder, "the files are the texts"),
        ("label_key", config.label_key == "label" or not is_folder, "folders name the classes"),
    ):
        if not has_effect:
            raise BadInput(
                f"config.data.{key}={getattr(config, key)!r} has no effect with "
                f"config.data.name='folder' and config.data.files={config.files!r}: leave it out "
                f"({otherwise})"
            )


def check_no_files(config: SentenceDataConfig) -> None:
    """Refuses files, which only 'folder' has."""
    if config.files is not None:
        raise BadInput(
            f"config.data.files={config.files!r} has no effect with config.data.name="
            f"{config.name!r}: set the name to 'folder'"
        )


def check_given(pattern: str | None) -> str:
    """Returns the pattern of files; refuses none."""
    if not pattern:
        raise BadInput(f"config.data.files is missing: {_REMEDY}")
    return pattern


def check_found(documents: Sequence[str], pattern: str | None) -> None:
    """Refuses a pattern of files that hold no text."""
    if not documents:
        raise BadInput(f"config.data.files={pattern!r}: no file with text there: {_REMEDY}")


@contextlib.contextmanager
def reading_file(path: pathlib.Path) -> Iterator[None]:
    """Reports as bad input a file that cannot be read."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): leave it out") from error


def check_is_text(content: bytes, path: pathlib.Path) -> None:
    """Refuses a file that holds no text."""
    # Images, archives and the like hold NUL bytes, and no text does.
    if b"\0" in content:
        raise BadInput(f"{path} is not text (it holds NUL bytes): leave it out")


def check_text_key(name: str, features: Collection[str], texts: Sequence[str], key: str) -> None:
    """Refuses a key that is not one of the set's texts.

    Args:
      name: of the set.
      features: names of all its features.
      texts: names of those that are texts.
      key: that the config names.
    """
    if key not in texts:
        raise BadInput(
            f"config.data.text_key={key!r} is not a text: {_listed(name, features)}; of text: "
            f"{', '.join(texts) or 'none'}"
        )


def check_one_text(
    name: str, features: Collection[str], texts: Sequence[str], usual: Sequence[str]
) -> None:
    """Refuses a set without a text, or with several of them and none under a usual name."""
    if not texts:
        raise BadInput(
            f"config.data.name: {_listed(name, features)}, none of them text: a set of texts is "
            "needed"
        )

    if len(texts) > 1 and not set(texts) & set(usual):
        raise BadInput(
            f"{_listed(name, features)}, several of them text: name one of {', '.join(texts)} as "
            "config.data.text_key"
        )


def check_label_key(name: str, features: dict[str, Any], key: str) -> None:
    """Refuses a key that is not a class label of the set."""
    label = features.get(key)
    if not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
        raise BadInput(
            f"config.data.label_key={key!r} is not a class label: {_listed(name, features)}"
        )


def _listed(name: str, features: Collection[str]) -> str:
    return f"{name} has the features {', '.join(features)}"


def unreadable(record: str, error: Exception, place: str) -> BadInput:
    """Returns the error for a record that cannot be read; `place` is of `record_place`."""
    return BadInput(f"{record} cannot be read ({error}): prepare the set again{place}")


def check_packing(name: str) -> None:
    """Refuses a name that is not one of PACKINGS."""
    if name not in PACKINGS:
        raise BadInput(str(unknown("config.data.packing", name, PACKINGS)))


def check_vocabulary(tokenizer: Tokenizer, vocabulary: int) -> None:
    """Refuses a model of another vocabulary than the tokenizer's."""
    if tokenizer.vocabulary != vocabulary:
        raise BadInput(
            f"config.model.vocabulary={vocabulary}: the tokenizer has {tokenizer.vocabulary} "
            f"tokens: set it to {tokenizer.vocabulary}"
        )


def check_not_empty(splits: Mapping[str, Sequence[str]], name: str, held_out: float) -> None:
    """Refuses splits of documents one of which holds no text."""
    for split, documents in splits.items():
        if not any(documents):
            raise BadInput(
                f"config.data.name={name}: the split {split!r} holds no text: give more text or "
                f"another config.data.held_out_fraction than {held_out}"
            )


def check_held_out(name: str, examples: int, lacking: int) -> None:
    """Refuses a training split with too few examples to hold out one per lacking split."""
    if examples <= lacking:
        splits = "validation split" if lacking == 1 else "split but 'train'"
        raise BadInput(
            f"config.data.name: {name} has no {splits}, and {examples} training "
            f"example{'s' * (examples != 1)}, too few to hold out one for each that is lacking: "
            "choose another set"
        )


def check_labels(labels: np.ndarray, classes: int, name: str, place: Callable[[int], str]) -> None:
    """Refuses labels outside the classes; `place` says where a record is, for the message."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise BadInput(
            f"{name}: record {wrong[0]} has label {labels[wrong[0]]}; the set's labels are 0 to "
            f"{classes - 1}: every text needs one{place(int(wrong[0]))}"
        )


def check_lengths(lengths: np.ndarray, size: int) -> None:
    """Raises ValueError for sequences, to be packed into blocks of a size, that do not fit."""
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= size:
        raise ValueError(
            f"lengths from 1 to size={size} are accepted; some from {lengths.min()} to "
            f"{lengths.max()} were given: cut longer sequences first"
        )
