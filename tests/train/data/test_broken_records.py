"""A record of a prepared set that is refused is named by its file and its number in it."""

import dataclasses
import io
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from train.config.data import SentenceDataConfig
from train.data.cuts import Part, record_place
from train.data.images.prepared import _decode_all
from train.data.images.records import Records
from train.data.text.documents import load_sentences
from train.data.text.prepared import read_texts
from train.errors import BadInput

SHARDS = [3, 4, 3]  # records of each file of the split 'train'
BROKEN = 5  # record 2 of the second file
BAD_LABEL = 8  # record 1 of the third file


def png():
    content = io.BytesIO()
    Image.new("RGB", (2, 2)).save(content, "png")
    return content.getvalue()


PIXELS = png()


class Mixed(tfds.core.GeneratorBasedBuilder):
    """Images and texts with labels, one record broken and another labelled wrongly."""

    VERSION = tfds.core.Version("1.0.0")
    name = "mixed"

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(2, 2, 3)),
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(10)}

    def _generate_examples(self, n):
        for i in range(n):
            label = -1 if i == BAD_LABEL else i % 2
            yield i, {"image": io.BytesIO(PIXELS), "text": f"text {i}", "label": label}


class Damaged:
    """A data source one of whose records the reader refuses."""

    def __init__(self, source):
        self.source, self.dataset_info, self.split = source, source.dataset_info, source.split

    def __len__(self):
        return len(self.source)

    def __getitem__(self, place):
        if place == BROKEN:
            raise RuntimeError("bad chunk")
        return self.source[place]

    def __getitems__(self, places):
        return [self[place] for place in places]


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    """Keeps the order of the records, over several files."""
    made = Mixed(data_dir=tmp_path_factory.mktemp("data"), file_format="array_record")
    config = tfds.download.DownloadConfig(num_shards=len(SHARDS))
    made.download_and_prepare(download_config=config)
    stock = tfds.builder_from_directory(made.data_path)
    assert stock.info.splits["train"].shard_lengths == SHARDS
    return stock


def place(builder, index, split="train"):
    return record_place(builder.as_data_source(split), index)


def test_a_place_is_a_file_and_the_number_of_a_record_in_it(builder):
    for index, (shard, number) in {0: (0, 0), 2: (0, 2), 3: (1, 0), 9: (2, 2)}.items():
        name = f"mixed-train.array_record-{shard:05}-of-00003"
        expected = f"; it is record {number} of {builder.data_path / name}"
        assert place(builder, index) == expected
    # A part of a split begins inside a file.
    assert place(builder, 1, "train[4:]") == place(builder, 5)
    part = Part(builder.as_data_source("train"), np.array([9, 5]))
    assert record_place(part, 1) == place(builder, 5)
    assert record_place([1, 2], 1) == ""


def refused(action, index, builder):
    with pytest.raises(BadInput) as refusal:
        action()
    message = str(refusal.value)
    assert message.endswith(place(builder, index)), message
    assert re.search(rf"record {index} (cannot be|has label -?\d)", message)


@pytest.mark.parametrize("index", [BROKEN, BAD_LABEL])
def test_images(builder, index):
    undecoded = {"image": tfds.decode.SkipDecoding()}
    source = builder.as_data_source("train", decoders=undecoded)
    if index == BROKEN:
        source = Damaged(source)

    # Decoded at once into memory, and as they are read.
    refused(lambda: _decode_all(source, (2, 2, 3), 2, "mixed/train", False), index, builder)
    records = Records(source, split="mixed/train", classes=2, image_size=(2, 2))
    refused(lambda: records.gather(np.array([index])), index, builder)


def test_a_record_that_is_left_out(builder, caplog):
    source = Damaged(
        builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    )
    records = Records(source, split="mixed/train", classes=2, image_size=(2, 2))
    dataclasses.replace(records, skip_corrupt=True).gather(np.array([BROKEN]))
    assert [record.getMessage() for record in caplog.records] == [
        f"left out mixed/train: record {BROKEN}: bad chunk{place(builder, BROKEN)}"
    ]


def test_texts(builder, monkeypatch):
    source = Damaged(builder.as_data_source("train"))
    monkeypatch.setattr(builder, "as_data_source", lambda split: source)
    refused(lambda: read_texts(builder, "mixed", "train", "text"), BROKEN, builder)


def test_sentences(builder):
    config = SentenceDataConfig(name="mixed", data_dir=str(builder.data_path.parent.parent))
    refused(lambda: load_sentences(config), BAD_LABEL, builder)
