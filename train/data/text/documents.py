"""Splits of texts: of the standard library, of files, and of sets of tensorflow-datasets."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from rich.console import Console
from rich.progress import track

from train.config.data import LanguageDataConfig, SentenceDataConfig
from train.data import tfds_sets
from train.data.cuts import SEED, cut
from train.data.text.files import decode, read_files
from train.errors import BadInput

_CHUNK = 1024  # records read at a time
_TEXT_KEYS = ("text", "sentence")  # the first of these, where a set has several texts


@dataclasses.dataclass(frozen=True)
class LabelledTexts:
    """One split of labelled texts.

    Attributes:
      texts: the texts.
      labels: [N] int32, from 0 to classes - 1.
      classes: number of classes.
    """

    texts: list[str]
    labels: np.ndarray
    classes: int

    def take(self, places: np.ndarray) -> "LabelledTexts":
        """Returns the texts at those places, in that order."""
        texts = [self.texts[place] for place in places]
        return LabelledTexts(texts, self.labels[places], self.classes)


def load_documents(config: LanguageDataConfig) -> dict[str, list[str]]:
    """Returns the documents of the splits 'train', 'validation' and 'test'.

    'pydocs' are the topics of Python's own help, 'files' the files of config.files. They, and a set
    that has a split 'train' alone, are shuffled by a fixed seed and cut by characters: the first
    1 - 2 config.held_out_fraction of them are for training, as much as config.held_out_fraction for
    each of the others. A document astride a cut is cut in two. Of a set with a test split (or a
    validation split, which then is the test split) the last documents of 'train' are the validation
    split.

    Args:
      config: name, data_dir, files, text_key, held_out_fraction.

    Raises:
      BadInput: no such set or files, no or several features of text, or a split without text.
    """
    _check_keys(config)
    if config.name == "pydocs":
        return _cut([topics[name] for name in sorted(topics)], config)
    if config.name == "files":
        return _cut(read_files(config.files), config)
    builder = tfds_sets.find(config.name, config.data_dir, own=("pydocs", "files"))
    key = _text_key(builder, config.text_key)
    sizes = _sizes(builder, config.name)

    def read(split: str) -> list[str]:
        return _read_texts(builder, config.name, split, key)[0]

    if not sizes.get("test") and not sizes.get("validation"):
        return _cut(read("train"), config)
    names = {name: name for name in ("train", "validation", "test")}
    if not sizes.get("test") or not sizes.get("validation"):
        held_out = _held_out(config, sizes["train"])
        names["train"], names["validation"] = f"train[:-{held_out}]", f"train[-{held_out}:]"
        names["test"] = "test" if sizes.get("test") else "validation"
    return _check_text({name: read(split) for name, split in names.items()}, config)


def load_sentences(config: SentenceDataConfig) -> dict[str, LabelledTexts]:
    """Returns the labelled texts of the splits 'train', 'validation' and 'test'.

    The test split is the set's 'test', or its 'validation' where it has no labelled test split
    (GLUE). For each split that is lacking then, config.held_out_fraction of the training examples,
    drawn by a fixed seed, are held out.

    Args:
      config: name, data_dir, text_key, label_key, held_out_fraction.

    Raises:
      BadInput: no such set, no or several features of text, no class label, too few examples, or a
        label that is none of the classes.
    """
    builder = tfds_sets.find(config.name, config.data_dir)
    key = _text_key(builder, config.text_key)
    classes = _classes(builder, config.label_key)
    sizes = _sizes(builder, config.name)

    def read(split: str) -> LabelledTexts | None:
        if not sizes.get(split):
            return None
        texts, labels = _read_texts(builder, config.name, split, key, config.label_key)
        return LabelledTexts(texts, np.array(labels, np.int32), classes)

    train, validation, test = read("train"), read("validation"), read("test")
    if test is None or test.labels.min() < 0:
        validation, test = None, validation
    splits = {"train": train, "validation": validation, "test": test}
    for name, split in splits.items():
        if split is not None:
            _check_labels(split, f"{config.name}/{name}")
    return _complete(splits, config)


def _complete(
    splits: Mapping[str, LabelledTexts | None], config: SentenceDataConfig
) -> dict[str, LabelledTexts]:
    """Cuts the splits that a set lacks off its training split."""
    present = {name: split for name, split in splits.items() if split is not None}
    lacking = len(splits) - len(present)
    if not lacking:
        return present
    train = present["train"]
    held_out = _held_out(config, len(train.texts), lacking)
    places = cut(len(train.texts), held_out if "test" not in present else 0, held_out)
    parts = {name: train.take(part) for name, part in places.items()}
    return {
        name: parts[name] if name == "train" else present.get(name, parts[name]) for name in splits
    }


def _cut(documents: list[str], config: LanguageDataConfig) -> dict[str, list[str]]:
    """Cuts documents, in a random order, by characters into the three splits."""
    order = np.random.default_rng(SEED).permutation(len(documents))
    rest = [documents[place] for place in order]
    total = sum(map(len, rest))
    train, rest = _cut_once(rest, round(total * (1 - 2 * config.held_out_fraction)))
    characters = round(total * (1 - config.held_out_fraction)) - sum(map(len, train))
    validation, test = _cut_once(rest, characters)
    return _check_text({"train": train, "validation": validation, "test": test}, config)


def _cut_once(documents: list[str], characters: int) -> tuple[list[str], list[str]]:
    """Cuts off the first so many characters, up to the next end of a line."""
    ends = list(itertools.accumulate(map(len, documents)))
    if characters <= 0 or characters >= (ends or [0])[-1]:
        return (documents, []) if characters > 0 else ([], documents)
    place = next(i for i, end in enumerate(ends) if end >= characters)
    document = documents[place]
    at = characters - (ends[place] - len(document))
    # The last document's own end would leave nothing behind the cut.
    last = len(document) - (place == len(documents) - 1)
    at = document.find("\n", at - 1, last) + 1 or at
    before, behind = document[:at], document[at:]
    return [*documents[:place], before], [*([behind] if behind else []), *documents[place + 1 :]]


def _check_text(splits: dict[str, list[str]], config: LanguageDataConfig) -> dict[str, list[str]]:
    for name, documents in splits.items():
        if not any(documents):
            raise BadInput(
                f"config.data.name={config.name}: the split {name!r} holds no text: give more text "
                f"or another config.data.held_out_fraction than {config.held_out_fraction}"
            )
    return splits


def _held_out(
    config: LanguageDataConfig | SentenceDataConfig, examples: int, splits: int = 1
) -> int:
    """Returns how many training examples are held out for each of the splits that are lacking."""
    if examples <= splits:
        names = "validation split beside the test split" if splits == 1 else "split but 'train'"
        raise BadInput(
            f"config.data.name: {config.name} has no {names}, and {examples} training "
            f"example{'s' * (examples != 1)}, too few to hold out one for each that is lacking: "
            "take another set"
        )
    return min(max(1, round(config.held_out_fraction * examples)), (examples - 1) // splits)


def _check_keys(config: LanguageDataConfig) -> None:
    """Refuses what is given and would play no part."""
    ours = config.name in ("pydocs", "files")
    for key, fits in (
        ("files", config.name == "files"),
        ("data_dir", not ours),
        ("text_key", not ours),
    ):
        value = getattr(config, key)
        if value is not None and not fits:
            raise BadInput(
                f"config.data.{key}={value!r} plays no part with config.data.name={config.name!r}: "
                + ("set the name to 'files'" if key == "files" else "leave it out")
            )


def _sizes(builder: Any, name: str) -> dict[str, int]:
    """Returns the number of examples of each split, of which 'train' must have some."""
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    if not sizes.get("train"):
        raise BadInput(
            f"config.data.name: {name} has no examples in a split 'train'; it has {sizes}"
        )
    return sizes


def _text_key(builder: Any, key: str | None) -> str:
    """Returns the name of the feature that holds the text."""
    features: dict[str, Any] = dict(builder.info.features)
    texts = [name for name in features if isinstance(features[name], tfds.features.Text)]
    listed = f"{builder.name} has the features {', '.join(features)}"
    if key is not None:
        if key not in texts:
            raise BadInput(
                f"config.data.text_key={key!r} names no text: {listed}; of text: "
                f"{', '.join(texts) or 'none'}"
            )
        return key
    if not texts:
        raise BadInput(f"config.data.name: {listed}, none of them text: a set of texts is needed")
    if len(texts) == 1:
        return texts[0]
    for name in _TEXT_KEYS:
        if name in texts:
            return name
    raise BadInput(
        f"{listed}, several of them text: name one of {', '.join(texts)} as config.data.text_key"
    )


def _classes(builder: Any, key: str) -> int:
    """Returns the number of classes of the feature that holds the label."""
    features: dict[str, Any] = dict(builder.info.features)
    label = features.get(key)
    if not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
        raise BadInput(
            f"config.data.label_key={key!r} names no class label: {builder.name} has the features "
            f"{', '.join(features)}"
        )
    return label.num_classes


def _check_labels(split: LabelledTexts, name: str) -> None:
    wrong = np.flatnonzero((split.labels < 0) | (split.labels >= split.classes))
    if len(wrong):
        raise BadInput(
            f"{name}: record {wrong[0]} has label {split.labels[wrong[0]]}; the set's labels are "
            f"0 to {split.classes - 1}: every text needs one"
        )


def _read_texts(
    builder: Any, name: str, split: str, text_key: str, label_key: str | None = None
) -> tuple[list[str], list[int]]:
    """Reads a split's texts, and its labels where they have a key."""
    contents: list[bytes] = []
    labels: list[int] = []
    for records in _chunks(builder.as_data_source(split), f"{name}/{split}"):
        contents += [record[text_key] for record in records]
        if label_key is not None:
            labels += [int(record[label_key]) for record in records]
    return decode(contents, f"{name}/{split}"), labels


def _chunks(source: Any, split: str) -> Iterator[list[Any]]:
    bar = Console(stderr=True)
    for start in track(
        range(0, len(source), _CHUNK),
        f"reading {split}",
        console=bar,
        transient=True,
        disable=not bar.is_terminal,
    ):
        stop = min(start + _CHUNK, len(source))
        try:
            records = source.__getitems__(list(range(start, stop)))
        except Exception as error:  # the reader raises whatever its format's library does
            raise BadInput(
                f"{split}: records {start} to {stop - 1} cannot be read ({error}): prepare the set "
                "anew"
            ) from error
        yield records
