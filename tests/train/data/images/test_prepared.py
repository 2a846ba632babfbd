"""Sets of tensorflow-datasets of one image size: splits, pixels, and what is refused."""

import io
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tests.helpers.tiny import make_tiny
from train.config.border import from_config_dict
from train.data.sources import load_splits
from train.errors import BadInput

RNG = np.random.default_rng(0)
IMAGES = {
    "train": RNG.integers(0, 256, (20, 6, 5, 3), np.uint8),
    "test": RNG.integers(0, 256, (7, 6, 5, 3), np.uint8),
}


def encode(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Example i of a split has label i % 4; in 'tiny_broken' train's 3 is cut short."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(
                shape=(None, None, 3) if "varying" in self.name else (6, 5, 3)
            ),
            "label": tfds.features.ClassLabel(num_classes=4),
        }
        if self.name == "tiny_unlabelled":
            del features["label"]
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        alone = "untested" in self.name or "varying" in self.name
        names = ["train"] if alone else ["train", "test"]
        return {name: self._generate_examples(name) for name in names}

    def _generate_examples(self, split):
        for i, image in enumerate(IMAGES[split]):
            content = encode(image)
            if "broken" in self.name and (split, i) == ("train", 3):
                content = content[:40]
            label = {} if self.name == "tiny_unlabelled" else {"label": i % 4}
            yield i, {"image": io.BytesIO(content), **label}


class TinyBroken(Tiny, skip_registration=True):
    pass


class TinyUnlabelled(Tiny, skip_registration=True):
    pass


class TinyUntested(Tiny, skip_registration=True):
    pass


class TinyUntestedBroken(Tiny, skip_registration=True):
    pass


class TinyVarying(Tiny, skip_registration=True):
    pass


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for builder in (Tiny, *Tiny.__subclasses__()):
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)


@pytest.fixture
def load(data_dir):
    def load(name="tiny", **changes):
        cfg = make_tiny()
        cfg.data.update({"name": name, "validation_examples": 5, "data_dir": data_dir} | changes)
        return load_splits(from_config_dict(cfg))

    return load


def test_splits_hold_the_sets_own_pixels(load):
    splits = load()
    train, validation, test = (splits[name] for name in ("train", "validation", "test"))
    np.testing.assert_array_equal(train.images, IMAGES["train"][:15])
    np.testing.assert_array_equal(validation.images, IMAGES["train"][15:])
    np.testing.assert_array_equal(test.images, IMAGES["test"])
    assert train.labels.tolist() == [i % 4 for i in range(15)]
    assert (train.classes, train.image_shape, train.peak) == (4, (6, 5, 3), 255.0)
    scaled = IMAGES["train"][:15] / 255
    for split in splits.values():  # the training pixels' moments everywhere
        np.testing.assert_allclose(split.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-9)
        np.testing.assert_allclose(split.std, scaled.std(axis=(0, 1, 2)), rtol=1e-9)
    assert "tensorflow" not in sys.modules


def test_a_record_that_cannot_be_decoded(load, capsys):
    with pytest.raises(BadInput, match="tiny_broken/train: record 3 cannot be decoded"):
        load("tiny_broken")
    train = load("tiny_broken", skip_corrupt=True)["train"]
    assert "left out 1 of 15 records" in capsys.readouterr().err
    np.testing.assert_array_equal(train.images, np.delete(IMAGES["train"][:15], 3, axis=0))
    assert train.labels.tolist() == [i % 4 for i in range(15) if i != 3]


def numbers(split):
    """Which of the training images a split holds."""
    contents = [image.tobytes() for image in IMAGES["train"]]
    return [contents.index(image.tobytes()) for image in split.images]


def test_a_training_split_alone_is_cut_by_a_fixed_seed(load):
    splits = load("tiny_untested", test_fraction=0.3)
    parts = {name: numbers(split) for name, split in splits.items()}
    assert {name: len(part) for name, part in parts.items()} == dict(train=9, validation=5, test=6)
    assert sorted(n for part in parts.values() for n in part) == list(range(20))
    assert parts["test"] != list(range(14, 20))  # drawn, not the last ones of a set that is sorted
    for name, part in parts.items():
        assert part == sorted(part) and splits[name].labels.tolist() == [n % 4 for n in part]
    # Another validation split.
    again = load("tiny_untested", test_fraction=0.3, validation_examples=1)
    assert numbers(again["test"]) == parts["test"]
    assert set(numbers(again["train"])) > set(parts["train"])


def test_a_training_split_of_images_of_varying_size_is_cut_likewise(load):
    fixed = load("tiny_untested", test_fraction=0.3)
    for name, split in load("tiny_varying", test_fraction=0.3).items():
        batch = split.gather(np.arange(len(split)))
        assert batch["label"].tolist() == fixed[name].labels.tolist()
        assert batch["index"].tolist() == list(range(len(split)))


def test_a_record_of_a_part_is_named_by_its_number_in_the_set(load):
    message = r"tiny_untested_broken/train, its part for \w+: record 3 cannot be decoded"
    with pytest.raises(BadInput, match=message):
        load("tiny_untested_broken", test_fraction=0.3)
    splits = load("tiny_untested_broken", test_fraction=0.3, skip_corrupt=True)
    assert sorted(n for split in splits.values() for n in numbers(split)) == [
        n for n in range(20) if n != 3
    ]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("tiny", dict(validation_examples=0), "between 1 and 19 of its 20 training examples"),
        ("tiny", dict(validation_examples=20), "=20: tiny has no validation split"),
        ("tiny_unlabelled", {}, "has the features image: a set with 'image' and a class 'label'"),
        ("tiny_untested", {}, "test_fraction=0: tiny_untested has a split 'train' of 20 examples"),
        ("tiny_untested", dict(test_fraction=0.01), "0 to test on, 5 to validate on and 15 to tra"),
        ("tiny_untested", dict(test_fraction=0.75), "15 to test on, 5 to validate on and 0 to tra"),
        (
            "tiny_untested",
            dict(test_fraction=0.3, validation_examples=0),
            "6 to test on, 0 to validate on",
        ),
        ("tiny", dict(test_fraction=0.1), "no effect: tiny has a split 'test' to test on; set it"),
        (
            "digits",
            dict(test_fraction=0.1, validation_examples=0),
            "no effect: 'digits' has a test split of its own",
        ),
        ("tinny", {}, "'tinny' is neither 'digits' nor a set"),
        (
            "cifar100",
            {},
            "cifar100 is not prepared in .*: run `python -m train.prepare cifar100 --",
        ),
    ],
)
def test_refusals(load, name, changes, message):
    with pytest.raises(BadInput, match=message):
        load(name, **changes)
