"""What a data set is, and how it is read: the groups `data` of a run's config."""

import dataclasses
from typing import ClassVar

PACKINGS = ("documents", "stream")  # the values of config.data.packing of a language model


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training images, made on the device; 0 (or False) leaves one out."""

    shift_px: float  # affine map: either way, along each axis, in pixels
    rotate_degrees: float  # affine map: either way
    zoom: float  # affine map: as a fraction, either way: 0.1 scales by 0.9 to 1.1
    crop_padding_px: int  # padded crop: zeros around the image, from which one of its size is cut
    crop_min_area: float  # resized crop: least part of the image's area; 0: no resized crop
    flip: bool  # left to right, every second image
    randaugment_ops: int  # RandAugment: operations an image
    randaugment_magnitude: float  # RandAugment: their strength, 0 to 10
    erasing: float  # probability that a random rectangle is replaced by noise
    mixup: float  # alpha of the Beta distribution that two images are mixed by
    cutmix: float  # alpha of the Beta distribution of the area cut from another image


@dataclasses.dataclass(frozen=True)
class ImageDataConfig:
    """Labelled images."""

    name: str  # 'digits', or the name of a tensorflow-datasets set with 'image' and 'label'
    data_dir: str | None  # where prepared sets lie; None: tensorflow-datasets' own default
    fold: int | None  # 0 to 4: the fifth that is tested on in cross-validation; digits alone
    validation: int  # examples held out of the training split where the set has no validation
    test_fraction: float  # of the examples of a set that has a training split alone, to test on
    repeats: int  # how often a batch holds each of its examples, each time augmented anew
    workers: int  # processes that decode images of varying size; 0: none, in this process
    skip_corrupt: bool  # leave out records that cannot be decoded, rather than stop
    augment: AugmentConfig


@dataclasses.dataclass(frozen=True)
class LanguageDataConfig:
    """Documents, for a language model."""

    name: str  # 'pydocs', 'files', or the name of a tensorflow-datasets set of texts
    data_dir: str | None  # where prepared sets lie; None: tensorflow-datasets' own default
    # With 'files': a file, a folder (all in it, at any depth) or a pattern such as 'texts/*.txt'. A
    # name that exists is no pattern, brackets or not; links are followed; hidden files left out.
    files: str | None
    text_key: str | None  # the set's feature that holds the text; None: its one text feature
    held_out: float  # fraction of the text for each split that the set lacks
    tokenizer: str  # 'bytes', 'bpe' (trained on the training split), or a tokenizer.json
    packing: str  # 'documents': apart from one another in a block; 'stream': one long text
    repeats: ClassVar[int] = 1
    workers: ClassVar[int] = 0


@dataclasses.dataclass(frozen=True)
class SentenceDataConfig:
    """Labelled sentences, for a classifier."""

    name: str  # the name of a tensorflow-datasets set with a text and a class label
    data_dir: str | None  # where prepared sets lie; None: tensorflow-datasets' own default
    text_key: str | None  # the set's feature that holds the text; None: its one text feature
    label_key: str  # the set's feature that holds the label
    held_out: float  # fraction of the training split for each split that the set lacks
    tokenizer: str  # 'bytes', 'bpe' (trained on the training split), or a tokenizer.json
    token_dropout: float  # probability that a token of a training sentence is hidden
    repeats: ClassVar[int] = 1
    workers: ClassVar[int] = 0
