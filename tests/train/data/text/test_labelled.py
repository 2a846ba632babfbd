"""Folders and tables of labelled texts: their classes and splits, their sizes, refusals."""

import shutil
from typing import Any

import numpy as np
import pytest

from configs import labelled_texts
from tests.helpers.notes import SIZES, make_notes, note
from train.config.border import from_config_dict
from train.data.sizes import with_sizes
from train.data.sources import load_splits
from train.data.text.documents import load_sentences
from train.errors import BadInput

NAMES = ["train", "validation", "test"]


@pytest.fixture
def notes(tmp_path):
    return make_notes(tmp_path / "notes")


def config_of(files, **changes) -> Any:
    cfg = labelled_texts.get_config()
    cfg.data.files = None if files is None else str(files)
    flat = {key.replace("__", "."): value for key, value in changes.items()}
    return from_config_dict(cfg, with_sizes(cfg, flat))


def load(files, **changes):
    return load_sentences(config_of(files, **changes).data)


def texts_of(splits):
    """The texts of all splits together, sorted."""
    return sorted(text for split in splits.values() for text in split.texts)


def test_a_folder_of_classes_is_cut_by_a_fixed_seed_each_class_in_proportion(notes):
    splits = load(notes)
    assert list(splits) == NAMES and [len(split.texts) for split in splits.values()] == [16, 3, 3]
    for split in splits.values():
        assert split.class_names == ("bad", "good") and split.classes == 2
        assert split.labels.dtype == np.int32 and set(split.labels) == {0, 1}
        assert split.labels.tolist() == [int("lovely" in text) for text in split.texts]
        assert split.origin.files == SIZES
    assert texts_of(splits) == sorted(note(c, i) for c, n in SIZES.items() for i in range(n))
    again = load(notes, seed=1)
    assert all(again[name].texts == splits[name].texts for name in NAMES)

    # As many as there are classes are held out, however small the part; as much for either split.
    few = load(notes, data__held_out_fraction=0.01)
    assert [len(split.texts) for split in few.values()] == [18, 2, 2]
    assert set(few["test"].labels) == set(few["validation"].labels) == {0, 1}


def test_folders_of_splits_are_taken_as_they_stand(tmp_path):
    sizes = {"train": {"a": 4, "b": 3}, "val": {"a": 2, "b": 1}, "test": {"b": 2}}
    for split, by_class in sizes.items():
        make_notes(tmp_path / "set", by_class, split=split)
    splits = load(tmp_path / "set")
    assert [splits[name].labels.tolist() for name in NAMES] == [
        [0] * 4 + [1] * 3, [0, 0, 1], [1, 1]
    ]  # fmt: skip
    shutil.rmtree(tmp_path / "set" / "test")
    tested = load(tmp_path / "set")
    assert tested["test"].texts == splits["validation"].texts
    assert len(tested["validation"].texts) == 2 and len(tested["train"].texts) == 5


def test_a_table_of_texts_and_labels(tmp_path):
    """A text may hold commas, quotes, ends of lines, and more letters than the library's limit."""
    table = tmp_path / "notes.csv"
    texts = [f'"It was ""fine"", {i}.\r\n\r\nTwice.\u2028"' for i in range(9)]
    texts += [f"dull {i}" for i in range(8)] + ["long " * 40_000]
    lines = [f"{text},{'good' if i < 9 else ' bad '}" for i, text in enumerate(texts)]
    table.write_text("\ufeff" + "\n".join(["Text,Label", *lines, ""]), "utf-8", newline="")
    splits = load(table)
    expected = [f'It was "fine", {i}.\r\n\r\nTwice.\u2028' for i in range(9)] + texts[9:]
    assert texts_of(splits) == sorted(expected)
    assert splits["train"].class_names == ("bad", "good")
    for split in splits.values():
        assert split.labels.tolist() == [int("fine" in text) for text in split.texts]

    # Other columns by the keys of the config; and splits of the table's own, in its order.
    rows = [f"{i},{'ab'[i % 2]},said {i},{'train' if i < 12 else 'VAL'}" for i in range(15)]
    table.write_text("\n".join(["n,Mood,Said,split", *rows]))
    splits = load(table, data__text_key="said", data__label_key="Mood")
    assert [len(split.texts) for split in splits.values()] == [10, 2, 3]
    assert splits["test"].texts == ["said 12", "said 13", "said 14"]
    assert splits["test"].labels.tolist() == [0, 1, 0]


def test_what_is_no_text_is_named_and_counted(notes, tmp_path, capsys):
    good = load(notes)
    bad = {"zz0.txt": b"", "zz1.txt": b" \n", "zz2.txt": b"caf\xe9", "zz3.txt": b"PK\0\1"}
    for name, content in bad.items():
        (notes / "good" / name).write_bytes(content)
    (notes / "bad" / ".hidden").write_bytes(b"")
    (notes / "readme").write_text("no class")
    (notes / "bad" / "bad000.txt").write_bytes(b"\xef\xbb\xbf" + note("bad", 0).encode())
    capsys.readouterr()
    found, told = load(notes), capsys.readouterr().err
    for name, reason in zip(
        bad,
        ("empty", "empty", "not UTF-8 from byte 3 on", "NUL bytes"),
        strict=True,
    ):
        assert f"good/{name} cannot be read as a text (it" in told and reason in told
    assert "4 of 26 files cannot be read" in told and ".hidden" not in told
    assert "1 files in no class's folder are left out" in told
    assert all(found[name].texts == good[name].texts for name in NAMES)

    table = tmp_path / "notes.csv"
    rows = [f"text {i},{'ab'[i % 2]}" for i in range(8)]
    table.write_text("\n".join(["text,label", *rows, ",a", '" ",b']))
    assert len(texts_of(load(table))) == 8
    told = capsys.readouterr().err
    assert "line 10 of notes.csv cannot be read as a text (it is empty): left out" in told
    assert "2 of 10 files cannot be read" in told


def refusals(tmp_path):
    """Folders that are refused, each with what the message says."""
    (tmp_path / "empty").mkdir()
    remedy = "give a folder that holds a folder of texts per class, such as reviews/good/1.txt"
    yield tmp_path / "empty", f"holds nothing: {remedy}"
    yield tmp_path / "missing", f"does not exist: {remedy}"
    yield None, f"config.data.files is missing: {remedy}"
    yield "gs://bucket/notes", "texts are read from a local folder"
    yield make_notes(tmp_path / "one", {"a": 5}), "holds one class, 'a'; two or more"
    yield make_notes(tmp_path / "single", {"a": 5, "b": 1}), "'b' has 1 text that can be read"
    yield make_notes(tmp_path / "pair", {"a": 2, "b": 2}), "'a' has too few texts to train,"
    yield make_notes(tmp_path / "alike", {"a": 5, "A": 5}), "'A' and 'a', .* put their texts toge"
    (tmp_path / "hollow" / "b").mkdir(parents=True)
    yield make_notes(tmp_path / "hollow", {"a": 5}), "holds no file: put its texts there"
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.txt").write_text("text")
    yield tmp_path / "flat", "holds 1 files and no folder"
    for path in (none := make_notes(tmp_path / "none", {"a": 2, "b": 2})).glob("*/*"):
        path.write_bytes(b"\xff")
    yield none, "none of 4 files can be read as a text: give files of text in UTF-8 that are not"

    for number, (text, message) in enumerate((
        ("", "is empty"),
        ("text,label\n", "is empty"),
        ("nice,good\nbad,bad\n", "first line of .* is 'nice,good': .* text,label or .*text_key"),
        ("file,label\nx.png,a\n", "first line of .* is 'file,label': let it name"),
        ("text,label\nx,a\ny,\n", "line 3 of .* has no label"),
        ("text,label\nx,a\ny\n", "line 3 of .* has no label"),
        ('text,label\n"x\n\n",a\ny,\n', "line 5 of .* has no label"),
        ("text,label,split\nx,a,dev\n", "has the split 'dev': train, val and test"),
        ("text,label,text\nx,a,y\n", "one column 'text' for one purpose"),
        ("text,label\ncaf\xe9,a\n", "is not a CSV in UTF-8"),
    )):  # fmt: skip
        table = tmp_path / f"{number}.csv"
        table.write_text(text, "latin-1")
        yield table, message


def test_refusals(tmp_path, notes):
    for files, message in refusals(tmp_path):
        with pytest.raises(BadInput, match=message):
            load(files)
    (tmp_path / "x.csv").write_text("text,label\nx,a\ny,b\n")
    for files, changes, message in (
        (notes, {"data__data_dir": "x"}, "config.data.data_dir='.*x' has no effect"),
        (
            notes,
            {"data__text_key": "x"},
            "config.data.text_key='x' .*the files are the texts",
        ),
        (notes, {"data__label_key": "x"}, "config.data.label_key='x' .*folders name the classes"),
        (notes, {"data__name": "glue/sst2"}, "config.data.files='.*' has no effect .*'glue/sst2'"),
        (notes, {"data__held_out_fraction": 0.49}, "data.held_out_fraction holds out 11 of 11 "),
        (tmp_path / "x.csv", {"data__text_key": "y"}, "let it name the columns, y,label or"),
        (tmp_path / "x.csv", {"data__text_key": "label"}, "one column 'label' for one purpose"),
    ):
        with pytest.raises(BadInput, match=message):
            load(files, **changes)


def test_a_table_of_images_that_is_no_csv_is_refused(tmp_path):
    """A quote that is never closed swallows the table: more than the library's cell takes."""
    table = tmp_path / "x.csv"
    table.write_text('file,label\n"x.png,a\n' + "y.png,b\n" * 20_000)
    cfg = labelled_texts.get_config()
    cfg.update(task="images", data={"name": "folder", "files": str(table)})
    with pytest.raises(BadInput, match="config.data.files: line 2 of .* has no label"):
        with_sizes(cfg, {})


def test_the_sizes_follow_from_the_texts(tmp_path, notes):
    config = config_of(notes)
    model = config.model
    assert (model.classes, model.vocabulary, model.block_size) == (2, 260, 32)
    assert (config.batch_size, config.train_steps, config.optimizer.warmup_steps) == (2, 300, 30)
    splits = load_splits(config)
    assert splits["train"].shortened == 0 and len(splits["train"]) >= config.batch_size

    given = config_of(notes, train_steps=50, model__block_size=16, data__tokenizer="bytes")
    assert (given.train_steps, given.model.block_size, given.model.vocabulary) == (50, 16, 257)
    assert given.optimizer.warmup_steps == 5

    # Longer texts of many words; those of the splits to train on alone are looked at.
    table = tmp_path / "long.csv"
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnprst"]
    rng = np.random.default_rng(0)
    rows = [f"{' '.join(rng.choice(words, 90))},{'ab'[i % 2]},train" for i in range(60)]
    rows += [f"short {i},{'ab'[i % 2]},{('val', 'test')[i // 4]}" for i in range(8)]
    table.write_text("\n".join(["text,label,split", *rows]))
    config = config_of(table)
    assert config.model.vocabulary == 257 + len(words) // 2
    assert (config.model.block_size, config.batch_size) == (256, 8)
    assert load_splits(config)["train"].tokenizer.vocabulary == config.model.vocabulary


def test_the_fingerprint_is_of_names_classes_splits_and_contents(notes):
    def sha():
        return load(notes)["train"].origin.sha256

    seen, first = {sha()}, sha()
    path = notes / "good" / "good000.txt"
    path.write_text("other")
    seen.add(sha())
    path.write_text(note("good", 0))
    assert sha() == first
    path.rename(notes / "good" / "other.txt")
    seen.add(sha())
    (notes / "good" / "other.txt").rename(notes / "bad" / "good000.txt")
    seen.add(sha())
    assert len(seen) == 4
