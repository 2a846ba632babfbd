"""Splits of texts: cuts that lose nothing, files, and prepared sets."""

import shutil
import sys
from pydoc_data.topics import topics

import numpy as np
import pytest
import tensorflow_datasets as tfds

from train.config.data import LanguageDataConfig, SentenceDataConfig
from train.data.text import prepared, sources
from train.data.text.documents import load_documents, load_sentences
from train.errors import BadInput

NAMES = ["train", "validation", "test"]


def language(name="files", **changes):
    base = dict(data_dir=None, files=None, text_key=None, held_out_fraction=0.1)
    return LanguageDataConfig(
        name=name, **(base | dict(tokenizer="bytes", packing="documents") | changes)
    )


def sentences(name, **changes):
    base = dict(data_dir=None, text_key=None, label_key="label", held_out_fraction=0.25)
    return SentenceDataConfig(
        name=name, **(base | dict(tokenizer="bytes", token_dropout=0.0) | changes)
    )


def test_pydocs():
    splits = load_documents(language("pydocs"))
    assert list(splits) == NAMES
    assert load_documents(language("pydocs")) == splits
    everything = "".join(map("".join, splits.values()))
    assert sorted(everything) == sorted("".join(topics.values()))
    whole = [document for split in splits.values() for document in split]
    assert len(set(whole) - set(topics.values())) in (2, 3, 4)  # of the two that were cut
    for name, part in zip(NAMES, (0.8, 0.1, 0.1), strict=True):
        assert abs(sum(map(len, splits[name])) / len(everything) - part) < 0.001


@pytest.mark.parametrize("seed", range(25))
def test_cuts_lose_and_double_nothing(seed, tmp_path):
    rng = np.random.default_rng(seed)
    alphabet = np.array(list("ab\n" if seed % 2 else "ab"))
    lengths = rng.integers(1, 60, rng.integers(1, 6)) + 20
    texts = ["".join(rng.choice(alphabet, length)) + f"<{i}>" for i, length in enumerate(lengths)]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text, newline="")
    splits = load_documents(language(files=str(tmp_path), held_out_fraction=0.3))
    joined = "".join(map("".join, splits.values()))
    order = sorted(range(len(texts)), key=lambda i: joined.index(f"<{i}>"))
    assert joined == "".join(texts[i] for i in order)
    total, place = len(joined), 0
    ends = np.cumsum([len(texts[i]) for i in order])
    for part, name in ((0.4, "train"), (0.7, "validation")):
        place += len("".join(splits[name]))
        cut = round(total * part)
        document_end = int(ends[ends >= cut][0])
        line_end = joined.find("\n", cut - 1, document_end) + 1
        assert place == (line_end or cut)


@pytest.mark.parametrize("text", ["one line\n", "a\n" * 5, "x" * 200 + "\n"])
def test_a_last_line_end_does_not_swallow_the_splits(text, tmp_path):
    (tmp_path / "a").write_text(text)
    splits = load_documents(language(files=str(tmp_path / "a"), held_out_fraction=0.3))
    assert "".join(map("".join, splits.values())) == text and all(map(any, splits.values()))


def test_files_are_read_as_they_are(tmp_path, capsys):
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "a.txt").write_bytes(b"first\r\n" * 30)
    (tmp_path / "b" / "bad.txt").write_bytes(b"ok \xff\xfe, \xe2\x82 cut\n" * 1 + b"x" * 100)
    (tmp_path / "b" / "c" / "one.md").write_bytes("ü\xff \ud7ff".encode() + b"\x80" + b"y" * 100)
    (tmp_path / "b" / "empty.txt").write_bytes(b"")
    (tmp_path / "b" / ".hidden").mkdir()
    (tmp_path / "b" / ".hidden" / "no.txt").write_bytes(b"no" * 30)
    (tmp_path / "b" / "marked.txt").write_bytes(b"\xef\xbb\xbfmarked")
    splits = load_documents(language(files=str(tmp_path)))
    joined = "".join(map("".join, splits.values()))
    assert "first\r\n" * 30 in joined and "nono" not in joined
    assert "marked" in joined and "\ufeff" not in joined  # a mark of the byte order is no text
    assert "ok \ufffd\ufffd, \ufffd cut\n" in joined and "ü\xff \ud7ff\ufffdyy" in joined
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"{tmp_path}/b/bad.txt: 4 invalid UTF-8 bytes replaced",
        f"{tmp_path}/b/c/one.md: 1 invalid UTF-8 byte replaced",
        f"{tmp_path}/b/empty.txt: empty, left out",
    ]
    matched = load_documents(language(files=str(tmp_path / "**" / "*.md")))
    assert len("".join(map("".join, matched.values()))) == 105


def found(place):
    """The text of all files that a pattern names, in the order of the alphabet."""
    splits = load_documents(language(files=str(place), held_out_fraction=0.3))
    return "".join(sorted("".join(map("".join, splits.values()))))


def test_names_with_brackets_are_names(tmp_path):
    folder = tmp_path / "texts [old]" / "a*"
    folder.mkdir(parents=True)
    (tmp_path / "texts o").mkdir()
    (tmp_path / "texts o" / "b.txt").write_text("wrong")
    (folder / "b.txt").write_text("abc")
    (folder / "c[1].txt").write_text("def")
    for place in (tmp_path / "texts [old]", folder, folder / "*", folder / "*.txt"):
        assert found(place) == "abcdef", place
    assert found(tmp_path / "texts [old]" / "**" / "*.txt") == "abcdef"
    assert found(tmp_path / "*" / "a*" / "c[1].txt") == "def"
    assert found(folder / "c[1].txt") == "def"
    assert found(folder / "[bx].txt") == "abc"  # no such file: a pattern


def test_links_are_followed_in_every_way_of_naming(tmp_path, capsys):
    texts, away = tmp_path / "texts", tmp_path / "away"
    (texts / "deep").mkdir(parents=True)
    (away / "in").mkdir(parents=True)
    (texts / "a.txt").write_text("abc")
    (away / "in" / "d.txt").write_text("def")
    (texts / "link").symlink_to(away)
    (texts / "back").symlink_to(texts)  # a loop
    (texts / "deep" / "back").symlink_to(tmp_path)
    (texts / "same.txt").symlink_to(texts / "a.txt")  # read once
    for place in (texts, texts / "**", texts / "**" / "*.txt", tmp_path / "t*" / "**" / "*"):
        assert found(place) == "abcdef", place
    assert found(texts / "*" / "in" / "*") == found(texts / "link") == "def"
    assert capsys.readouterr().err == ""
    (texts / "lost.txt").symlink_to(tmp_path / "nothing")
    assert found(texts) == "abcdef"
    assert capsys.readouterr().err == f"{texts}/lost.txt: a link to nothing, left out\n"


def test_hidden_files_are_read_where_they_are_named(tmp_path):
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / ".a").write_text("abc")
    (tmp_path / "d").write_text("def")
    assert found(tmp_path) == found(tmp_path / "**" / "*") == found(tmp_path / "*") == "def"
    assert found(tmp_path / ".h*" / ".*") == found(tmp_path / ".hidden" / ".a") == "abc"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(files=None), "config.data.files is missing"),
        (dict(files="{tmp}/*.nothing"), r"files='.*/\*.nothing': no file with text there"),
        (dict(files="{tmp}/empty"), "no file with text there"),
        (dict(files="{tmp}/short"), "the split 'validation' holds no text"),
        (dict(files="{tmp}/binary"), "binary is not text .it holds NUL bytes"),
        (
            dict(files="{tmp}/short", text_key="text"),
            "text_key='text' has no effect with .*'files'",
        ),
        (dict(files="{tmp}/short", data_dir="x"), "data_dir='x' has no effect"),
        (
            dict(name="pydocs", files="{tmp}/short"),
            "files=.* has no effect .*'pydocs': set the name",
        ),
    ],
)
def test_files_that_are_refused(tmp_path, changes, message):
    (tmp_path / "empty").write_text("")
    (tmp_path / "short").write_text("ab")
    (tmp_path / "binary").write_bytes(b"ab\0")
    if changes["files"]:
        changes = changes | {"files": changes["files"].format(tmp=tmp_path)}
    with pytest.raises(BadInput, match=message):
        load_documents(language(**changes))


# Of each set: the number of examples of its splits, and of its features those of text.
SETS = {
    "whole": (dict(train=20, validation=5, test=6), ["text"]),
    "reviews": (dict(train=20, test=6, unsupervised=4), ["text"]),
    "glue_like": (dict(train=20, validation=5, test=6), ["sentence"]),
    "untested": (dict(train=20, validation=5), ["text"]),
    "single": (dict(train=20), ["sentence", "other"]),
    "two": (dict(train=2), ["text"]),
    "one": (dict(train=1, test=1), ["text"]),
    "unmarked": (dict(train=20, test=6), ["text"]),
    "pairs": (dict(train=20, test=6), ["premise", "hypothesis"]),
    "bad_label": (dict(train=20, test=6), ["text"]),
    "unlabelled": (dict(train=20, test=6), []),
}


def text_of(split, i):
    return f"{split} {i}\n".encode() + (b"\xff" if (split, i) == ("train", 3) else b"")


def label_of(name, split, i):
    hidden = (name, split) in (("glue_like", "test"), ("unmarked", "test")) or (name, split, i) == (
        "bad_label",
        "train",
        7,
    )
    return -1 if hidden else int(i >= 10)


class Texts(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Sorted by label, as some sets are."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features: dict = {key: tfds.features.Text() for key in SETS[self.name][1]}
        features["label"] = tfds.features.ClassLabel(num_classes=2)
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SETS[self.name][0]}

    def _generate_examples(self, split):
        sizes, keys = SETS[self.name]
        for i in range(sizes[split]):
            texts = {
                key: b"" if key in ("text", "sentence") else f"{key} ".encode() for key in keys
            }
            texts = {key: start + text_of(split, i) for key, start in texts.items()}
            yield i, texts | {"label": label_of(self.name, split, i)}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in SETS:
        builder = type(name, (Texts,), {"name": name}, skip_registration=True)
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)


def texts(split, numbers):
    return [text_of(split, i).decode(errors="replace") for i in numbers]


def test_document_splits_of_a_set(data_dir, capsys):
    whole = load_documents(language("whole", data_dir=data_dir))
    assert capsys.readouterr().err == "whole/train: 1 invalid UTF-8 byte replaced\n"
    assert whole == {name: texts(name, range(SETS["whole"][0][name])) for name in NAMES}
    for name, test in (("reviews", "test"), ("untested", "validation")):
        splits = load_documents(language(name, data_dir=data_dir, held_out_fraction=0.2))
        assert splits["train"] == texts("train", range(16))
        assert splits["validation"] == texts("train", range(16, 20))
        assert splits["test"] == texts(test, range(SETS[name][0][test]))
    single = load_documents(language("single", data_dir=data_dir, held_out_fraction=0.2))
    joined = "".join(map("".join, single.values()))
    assert all(text in joined for text in texts("train", range(20)))
    assert len(joined) == sum(map(len, texts("train", range(20)))) and all(
        map(any, single.values())
    )
    assert "tensorflow" not in sys.modules


def test_sentence_splits_of_a_set(data_dir, monkeypatch):
    monkeypatch.setattr(prepared, "_CHUNK", 3)  # several chunks, the last one shorter
    whole = load_sentences(sentences("whole", data_dir=data_dir))
    for name, split in whole.items():
        size = SETS["whole"][0][name]
        assert split.texts == texts(name, range(size)) and split.classes == 2
        assert split.labels.dtype == np.int32
        assert split.labels.tolist() == [int(i >= 10) for i in range(size)]
    tests = (("reviews", "test", 6), ("glue_like", "validation", 5), ("untested", "validation", 5))
    for name, test, size in tests:
        splits = load_sentences(sentences(name, data_dir=data_dir))
        assert list(splits) == NAMES
        assert splits["test"].texts == texts(test, range(size))
        assert (len(splits["train"].texts), len(splits["validation"].texts)) == (15, 5)
        parts = splits["train"].texts + splits["validation"].texts
        assert sorted(parts) == sorted(texts("train", range(20)))
        for split in (splits["train"], splits["validation"]):
            numbers = [int(text.split()[1].strip("\ufffd")) for text in split.texts]
            assert split.labels.tolist() == [int(i >= 10) for i in numbers]
            assert 0 < split.labels.sum() < len(numbers)  # the last ones all have label 1
        assert load_sentences(sentences(name, data_dir=data_dir))["train"].texts == (
            splits["train"].texts
        )


@pytest.mark.parametrize("name", ["single", "unmarked"])
def test_sentences_with_a_training_split_alone_are_cut(data_dir, name):
    """'unmarked' has a test split without labels, which is no split to test on."""
    splits = load_sentences(sentences(name, data_dir=data_dir))
    assert list(splits) == NAMES
    assert [len(split.texts) for split in splits.values()] == [10, 5, 5]
    parts = [text for split in splits.values() for text in split.texts]
    assert sorted(parts) == sorted(texts("train", range(20)))
    for split in splits.values():
        numbers = [int(text.split()[1].strip("\ufffd")) for text in split.texts]
        assert numbers == sorted(numbers) and split.labels.tolist() == [n // 10 for n in numbers]
    assert 0 < splits["test"].labels.sum() < 5
    again = load_sentences(sentences(name, data_dir=data_dir))
    assert all(again[part].texts == splits[part].texts for part in NAMES)


def test_sentences_as_tokens(data_dir):
    splits = sources.load_sentences(sentences("glue_like", data_dir=data_dir), 9, 257)
    test = splits["test"]
    assert test.classes == 2 and test.shortened == 5  # 'validation 0' has more than 9 bytes
    batch = test.gather(np.arange(5))
    assert test.tokenizer.decode(batch["tokens"][4]) == "validatio"
    config = sentences("glue_like", data_dir=data_dir, tokenizer="bpe")
    assert sources.load_sentences(config, 9, 260)["train"].tokenizer.vocabulary == 260


@pytest.mark.parametrize(
    ("load", "config", "message"),
    [
        (load_documents, language("pairs"), "the features .*several of them text: name one of"),
        (load_documents, language("unlabelled"), "has the features label, none of them text"),
        (load_documents, language("pairs", text_key="label"), "of text: .*premise"),
        (load_documents, language("whole1"), "neither 'pydocs' nor 'files' nor a set that"),
        (load_documents, language("imdb_reviews"), "imdb_reviews is not prepared in"),
        (load_sentences, sentences("whole1"), "name='whole1' is not a set that"),
        (
            load_sentences,
            sentences("two"),
            "two has no split but 'train', and 2 training examples, ",
        ),
        (
            load_documents,
            language("one"),
            "no validation split, and 1 training example, ",
        ),
        (load_sentences, sentences("bad_label"), "bad_label/train: record 7 has label -1"),
        (load_sentences, sentences("whole", label_key="text"), "label_key='text' is not a class"),
    ],
)
def test_sets_that_are_refused(data_dir, load, config, message):
    config = type(config)(**(vars(config) | {"data_dir": data_dir}))
    with pytest.raises(BadInput, match=message):
        load(config)


@pytest.mark.parametrize(
    ("name", "key", "start"),
    [
        ("single", None, "train 0"),
        ("single", "other", "other train 0"),
        ("pairs", "premise", "premise train 0"),
        ("pairs", "hypothesis", "hypothesis train 0"),
    ],
)
def test_a_text_is_chosen_among_several(data_dir, name, key, start):
    splits = load_documents(language(name, data_dir=data_dir, text_key=key))
    whole = "".join(map("".join, splits.values()))
    assert f"\n{start}\n" in f"\n{whole}"
    assert whole.count(start.split("0")[0]) == whole.count("train") > 0


def test_a_set_that_cannot_be_read(data_dir, tmp_path):
    shutil.copytree(f"{data_dir}/whole", tmp_path / "whole")
    (record,) = (tmp_path / "whole" / "1.0.0").glob("whole-train*")
    record.write_bytes(b"\0" * record.stat().st_size)
    with pytest.raises(BadInput, match="whole/train"):
        load_documents(language("whole", data_dir=str(tmp_path)))
