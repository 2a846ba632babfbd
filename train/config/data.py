"""What a data set is, and how it is read: the group `data` of a run's config."""

import dataclasses
from typing import ClassVar

from train.config.setting import (
    ANY,
    COUNT,
    FRACTION,
    NOT_NEGATIVE,
    Range,
    between,
    one_of,
    setting,
)
from train.config.tables import DOCUMENT_SETS, IMAGE_SETS, SENTENCE_SETS, Table

PACKINGS = ("documents", "stream")

_ALPHA = Range("0, or 1e-6 or more", lambda value: value == 0 or value >= 1e-6)
_PART_OF_TEXT = Range("in (0, 0.5)", lambda value: 0 < value < 0.5)

_TOKENIZERS = ("bytes", "bpe")
_DATA_DIR = "Where prepared sets lie; None: tensorflow-datasets' own folder."
_TEXT_KEY = "The set's feature that holds the text; None: the only one that is a text."
_TOKENIZER = "'bytes', 'bpe' (byte pairs, trained on the training split), or a tokenizer.json."


def _set_in(table: Table) -> Range:
    """The names of sets, which are looked up when the data are read."""
    others = "a set of tensorflow-datasets"
    return Range(lambda: f"one of {', '.join((*table, others))}", ANY.contains)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training images, made on the device; 0 or False leaves one out."""

    shift_px: float = setting(
        0.0, "Affine map: the furthest shift along each axis, in pixels.", NOT_NEGATIVE
    )
    rotate_degrees: float = setting(0.0, "Affine map: the largest rotation.", NOT_NEGATIVE)
    zoom: float = setting(0.0, "Affine map: 0.1 scales by 0.9 to 1.1.", FRACTION)
    crop_padding_px: int = setting(
        0, "Padded crop: zeros around the image, from which its size is cut.", NOT_NEGATIVE
    )
    crop_min_area: float = setting(
        0.0, "Resized crop: the least part of the image's area; 0: no resized crop.", FRACTION
    )
    flip: bool = setting(False, "Mirror every second image, left to right.")
    randaugment_ops: int = setting(0, "RandAugment: operations per image.", between(0, 100))
    randaugment_magnitude: float = setting(9.0, "RandAugment: their strength.", between(0, 10))
    erasing: float = setting(
        0.0, "Probability that a random rectangle is replaced by noise.", between(0, 1)
    )
    mixup: float = setting(0.0, "Alpha of the Beta distribution that two images mix by.", _ALPHA)
    cutmix: float = setting(
        0.0, "Alpha of the Beta distribution of the area cut from another image.", _ALPHA
    )


@dataclasses.dataclass(frozen=True)
class ImageDataConfig:
    """Labelled images."""

    name: str = setting(
        "digits",
        "The set, of features 'image' and 'label'; or 'folder', with files.",
        _set_in(IMAGE_SETS),
    )
    data_dir: str | None = setting(None, _DATA_DIR, path=True)
    files: str | None = setting(
        None,
        "With name 'folder': a folder with a folder per class, or with such in train/, val/ and "
        "test/; or a CSV of 'file', 'label' and, if you like, 'split'.",
        path=True,
    )
    fold: int | None = setting(
        None, "The fifth to test on in cross-validation, 0 to 4; 'digits' alone has folds."
    )
    validation_examples: int = setting(
        0,
        "Held out of the training split where the set has no validation split; of the folds of "
        "'digits', all of them.",
        NOT_NEGATIVE,
    )
    test_fraction: float = setting(
        0.0, "Part of a set that has a training split alone, to test on.", FRACTION
    )
    repeats_per_batch: int = setting(
        1, "How often a batch holds each of its examples, augmented differently.", COUNT
    )
    workers: int = setting(
        0, "Processes that decode images of varying size; 0: the trainer's own.", between(0, 1024)
    )
    skip_corrupt: bool = setting(
        False, "Leave out records that cannot be decoded; of a folder they always are."
    )
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)


@dataclasses.dataclass(frozen=True)
class LanguageDataConfig:
    """Documents, for a language model."""

    name: str = setting("pydocs", "The set, of texts.", _set_in(DOCUMENT_SETS))
    data_dir: str | None = setting(None, _DATA_DIR, path=True)
    files: str | None = setting(
        None, "With name 'files': a file, a folder, or a pattern such as 'texts/*.txt'.", path=True
    )
    text_key: str | None = setting(None, _TEXT_KEY)
    held_out_fraction: float = setting(
        0.05, "Part of the text for each split that the set lacks.", _PART_OF_TEXT
    )
    tokenizer: str = setting("bytes", _TOKENIZER, path=True, words=_TOKENIZERS)
    packing: str = setting(
        "documents",
        "Documents apart from each other in a block, or one long text.",
        one_of(*PACKINGS),
    )
    repeats_per_batch: ClassVar[int] = 1
    workers: ClassVar[int] = 0


@dataclasses.dataclass(frozen=True)
class SentenceDataConfig:
    """Labelled sentences, for a classifier."""

    name: str = setting(
        "glue/sst2",
        "The set, with a text and a class label; or 'folder', with files.",
        _set_in(SENTENCE_SETS),
    )
    data_dir: str | None = setting(None, _DATA_DIR, path=True)
    files: str | None = setting(
        None,
        "With name 'folder': a folder with a folder of texts per class, or with such in train/, "
        "val/ and test/; or a CSV of 'text', 'label' and, if you like, 'split'.",
        path=True,
    )
    text_key: str | None = setting(
        None, "The set's feature, or a CSV's column, of the text; None: the only one, or 'text'."
    )
    label_key: str = setting("label", "The set's feature, or a CSV's column, of the label.")
    held_out_fraction: float = setting(
        0.1, "Part of the training split for each split that the set lacks.", _PART_OF_TEXT
    )
    tokenizer: str = setting("bpe", _TOKENIZER, path=True, words=_TOKENIZERS)
    token_dropout: float = setting(
        0.0, "Probability that a token of a training sentence is hidden.", FRACTION
    )
    repeats_per_batch: ClassVar[int] = 1
    workers: ClassVar[int] = 0
