"""Splits of texts: of the standard library, of files, and of sets of tensorflow-datasets."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from pydoc_data.topics import topics
from typing import Any

import numpy as np

from train.config.data import LanguageDataConfig, SentenceDataConfig
from train.config.tables import DOCUMENT_SETS, SENTENCE_SETS
from train.data import tfds_sets
from train.data.checks import check_splits
from train.data.cuts import SEED, cut
from train.data.split import Origin
from train.data.text.checks import (
    check_folder_keys,
    check_held_out,
    check_keys,
    check_labels,
    check_no_files,
    check_not_empty,
)
from train.data.text.files import read_files
from train.data.text.labelled import find_parts, read_labelled
from train.data.text.prepared import class_names, find_text_key, read_texts


@dataclasses.dataclass(frozen=True)
class LabelledTexts:
    """One split of labelled texts.

    Attributes:
      texts: N texts.
      labels: [N] int32, from 0 to classes - 1.
      classes: number of classes.
      class_names: of all classes.
      origin: the files that the set was read from, of a folder.
    """

    texts: list[str]
    labels: np.ndarray
    classes: int
    class_names: tuple[str, ...] = ()
    origin: Origin | None = None

    def take(self, index: np.ndarray) -> "LabelledTexts":
        """Returns the texts of an index, in its order."""
        return dataclasses.replace(
            self, texts=[self.texts[i] for i in index], labels=self.labels[index]
        )


@DOCUMENT_SETS.define("pydocs")
def _pydocs(config: LanguageDataConfig) -> dict[str, list[str]]:
    return _cut([topics[name] for name in sorted(topics)], config.held_out_fraction)


@DOCUMENT_SETS.define("files")
def _files(config: LanguageDataConfig) -> dict[str, list[str]]:
    return _cut(read_files(config.files), config.held_out_fraction)


@SENTENCE_SETS.define("folder")
def _folder(config: SentenceDataConfig) -> dict[str, LabelledTexts]:
    check_folder_keys(config)
    found = read_labelled(config.files, config.text_key or "text", config.label_key)
    whole = LabelledTexts(
        texts=found.texts,
        labels=found.labels,
        classes=len(found.classes),
        class_names=found.classes,
        origin=found.origin,
    )
    parts = find_parts(found, config.held_out_fraction)
    return {name: whole.take(part) for name, part in parts.items()}


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_labelled(value: Any) -> bool:
    return isinstance(value, LabelledTexts) and len(value.texts) > 0


def load_documents(config: LanguageDataConfig) -> dict[str, list[str]]:
    """Returns the documents of the splits 'train', 'validation' and 'test'.

    'pydocs' are the topics of Python's own help, 'files' the files of config.files. They, and a set
    that has a split 'train' alone, are shuffled by a fixed seed and cut by characters: the first
    1 - 2 config.held_out_fraction of them are for training, as much as config.held_out_fraction for
    each of the others. A document that straddles a cut is split in two. Of a set with a test split
    (or a validation split, which then is the test split) the last documents of 'train' are the
    validation split.

    Args:
      config: the documents, and how they are split.

    Raises:
      BadInput: no such set or files, no or several features of text, or a split without text.
    """
    check_keys(config)

    if config.name in DOCUMENT_SETS:
        splits = DOCUMENT_SETS[config.name](config)
        check_splits(config.name, splits, "a list of texts", _is_texts)
        splits = dict(splits)  # which is emptied while it is tokenised
    else:
        splits = _load_prepared(config)

    check_not_empty(splits, config.name, config.held_out_fraction)
    return splits


def load_sentences(config: SentenceDataConfig) -> dict[str, LabelledTexts]:
    """Returns the labelled texts of the splits 'train', 'validation' and 'test'.

    The test split is the set's 'test', or its 'validation' where it has no labelled test split
    (GLUE). For each split that is then lacking, config.held_out_fraction of the training examples,
    chosen by a fixed seed, are held out; of a folder's each class in proportion.

    Args:
      config: the texts, and how they are split.

    Raises:
      BadInput: no such set, no or several features of text, no class label, too few examples, or a
        label outside the classes.
    """
    if config.name in SENTENCE_SETS:
        splits = SENTENCE_SETS[config.name](config)
        check_splits(config.name, splits, "a LabelledTexts with texts", _is_labelled)
        for name, split in splits.items():
            check_labels(split.labels, split.classes, f"{config.name}/{name}", lambda _: "")
        return dict(splits)

    check_no_files(config)
    builder = tfds_sets.find(config.name, config.data_dir)
    text_key = find_text_key(builder, config.text_key)
    names = class_names(builder, config.label_key)
    classes = len(names)
    sizes = tfds_sets.split_sizes(builder, config.name)

    def read(split: str) -> LabelledTexts | None:
        if not sizes.get(split):
            return None
        texts, labels = read_texts(builder, config.name, split, text_key, config.label_key)
        return LabelledTexts(texts, np.array(labels, np.int32), classes, names)

    train, validation, test = read("train"), read("validation"), read("test")

    # Sets of competitions publish their test split with the label -1.
    is_tested = test is not None and test.labels.min() >= 0
    if not is_tested:
        validation, test = None, validation

    # The test split may be the set's validation split: its records are found under that name.
    splits = {"train": train, "validation": validation, "test": test}
    for name, split in splits.items():
        if split is not None:
            stored = "validation" if name == "test" and not is_tested else name
            place = functools.partial(tfds_sets.place_of, builder.info.splits, stored)
            check_labels(split.labels, classes, f"{config.name}/{name}", place)

    return _complete(splits, config)


def _load_prepared(config: LanguageDataConfig) -> dict[str, list[str]]:
    """Returns the documents of a set of tensorflow-datasets."""
    builder = tfds_sets.find(config.name, config.data_dir, builtin=tuple(DOCUMENT_SETS))
    text_key = find_text_key(builder, config.text_key)
    sizes = tfds_sets.split_sizes(builder, config.name)

    def read(split: str) -> list[str]:
        return read_texts(builder, config.name, split, text_key)[0]

    if not sizes.get("test") and not sizes.get("validation"):
        return _cut(read("train"), config.held_out_fraction)

    names = {name: name for name in ("train", "validation", "test")}
    if not sizes.get("test") or not sizes.get("validation"):
        held_out = _held_out(config, sizes["train"])
        names["train"], names["validation"] = f"train[:-{held_out}]", f"train[-{held_out}:]"
        names["test"] = "test" if sizes.get("test") else "validation"
    return {name: read(split) for name, split in names.items()}


def _complete(
    splits: Mapping[str, LabelledTexts | None], config: SentenceDataConfig
) -> dict[str, LabelledTexts]:
    """Cuts the splits that a set lacks off its training split."""
    present = {name: split for name, split in splits.items() if split is not None}
    lacking = len(splits) - len(present)
    if not lacking:
        return present

    # At random: some sets are sorted by label, and their last examples all have the same one.
    train = present["train"]
    held_out = _held_out(config, len(train.texts), lacking)
    parts = cut(len(train.texts), held_out if "test" not in present else 0, held_out)

    return {
        name: train.take(parts[name]) if name == "train" or name not in present else present[name]
        for name in splits
    }


def _held_out(
    config: LanguageDataConfig | SentenceDataConfig, examples: int, lacking: int = 1
) -> int:
    """Returns how many training examples are held out for each split that is lacking."""
    check_held_out(config.name, examples, lacking)

    # One or more for each, and one or more to train on.
    return min(max(1, round(config.held_out_fraction * examples)), (examples - 1) // lacking)


def _cut(documents: list[str], held_out: float) -> dict[str, list[str]]:
    """Cuts documents, shuffled, by characters into the three splits."""
    # Shuffled, for files and topics come sorted by name; by characters, for their lengths differ.
    shuffled = np.random.default_rng(SEED).permutation(len(documents))
    remaining = [documents[index] for index in shuffled]
    total = sum(map(len, remaining))

    train, remaining = _split_at(remaining, round(total * (1 - 2 * held_out)))

    # Counted from the beginning of the text: the first cut has moved to the end of a line.
    characters = round(total * (1 - held_out)) - sum(map(len, train))
    validation, test = _split_at(remaining, characters)

    return {"train": train, "validation": validation, "test": test}


def _split_at(documents: list[str], characters: int) -> tuple[list[str], list[str]]:
    """Splits documents after a number of characters, or at the next end of a line."""
    ends = list(itertools.accumulate(map(len, documents)))
    if characters <= 0 or characters >= (ends or [0])[-1]:
        return (documents, []) if characters > 0 else ([], documents)

    number = next(i for i, end in enumerate(ends) if end >= characters)
    document = documents[number]
    at = characters - (ends[number] - len(document))

    # The last document's own end would leave nothing after the cut.
    last = len(document) - (number == len(documents) - 1)

    # `find` returns -1 where the line does not end; then the cut stays inside it.
    at = document.find("\n", at - 1, last) + 1 or at
    before, after = document[:at], document[at:]

    return [*documents[:number], before], [*([after] if after else []), *documents[number + 1 :]]
