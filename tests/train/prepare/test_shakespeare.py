"""Preparing texts: what tensorflow-datasets reads back is what the published file holds."""

import dataclasses

import pytest
import tensorflow_datasets as tfds

from tests.helpers.archives import published
from train.config.data import LanguageDataConfig
from train.data.text.documents import load_documents
from train.errors import BadInput
from train.prepare.build import prepare
from train.prepare.sets import find

TEXT = "".join(f"{n}: To be, or not to bé?\n" for n in range(100))


def make(tmp_path, content):
    path = tmp_path / "input.txt"
    path.write_bytes(content)
    return dataclasses.replace(find("tiny_shakespeare"), archives=(published(path),)), path


def test_shakespeare(tmp_path):
    texts, path = make(tmp_path, TEXT.encode())
    assert "is prepared in" in prepare(texts, tmp_path / "data", path)
    builder = tfds.builder("tiny_shakespeare", data_dir=tmp_path / "data")
    assert str(builder.version) == "1.0.0"
    parts = {
        split: [record["text"].decode() for record in builder.as_data_source(split)]
        for split in ("train", "validation", "test")
    }
    assert {split: len(part) for split, part in parts.items()} == dict.fromkeys(parts, 1)
    assert "".join(part[0] for part in parts.values()) == TEXT
    assert len(parts["train"][0]) == int(0.9 * len(TEXT))
    config = LanguageDataConfig(
        name="tiny_shakespeare",
        data_dir=str(tmp_path / "data"),
        files=None,
        text_key=None,
        held_out_fraction=0.1,
        tokenizer="bytes",
        packing="stream",
    )
    assert load_documents(config) == parts


def test_a_file_that_is_no_text(tmp_path):
    texts, path = make(tmp_path, b"\xff\xfe")
    with pytest.raises(BadInput, match="is not a text in UTF-8"):
        prepare(texts, tmp_path / "data", path)


def test_the_official_file():
    (archive,) = find("tiny_shakespeare").archives
    assert archive.name == "input.txt" and archive.size_bytes == 1_115_394
