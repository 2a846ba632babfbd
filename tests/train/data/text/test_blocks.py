"""Blocks of tokens: every target once, segments and positions, and what is random."""

import dataclasses
import itertools

import numpy as np
import pytest

from train.config.data import LanguageDataConfig
from train.data.pipeline import eval_batches, train_batches
from train.data.text import sources
from train.data.text.blocks import Documents, Sentences, Stream, tokenise
from train.data.text.tokenizer import ByteTokenizer, train_bpe
from train.errors import BadInput

BYTES = ByteTokenizer()
END = BYTES.end
INT32 = {"tokens", "targets", "segments", "positions", "index"}


def random_texts(seed, mean=12):
    """Texts of a few letters, empty ones among them; no two tokens in a row tell where they are."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.geometric(1 / mean, rng.integers(1, 40)) - 1, 100)
    return ["".join(rng.choice(list("abcdé\n"), length)) for length in lengths]


def sequences(texts):
    """Inputs and targets of each text."""
    for text in texts:
        tokens = [END, *text.encode(), END]
        yield tokens[:-1], tokens[1:]


def pairs(batch):
    """Every (token, target) of a batch that is no filling."""
    there = batch["segments"] > 0
    return list(zip(batch["tokens"][there], batch["targets"][there], strict=True))


def test_many_texts_are_tokenised_in_chunks():
    texts = [str(i) for i in range(2100)]
    corpus = tokenise(texts, BYTES)
    assert corpus.tokens.tolist() == [*itertools.chain(*(s for s, _ in sequences(texts))), END]
    assert corpus.starts.tolist() == np.flatnonzero(corpus.tokens == END).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_documents_hold_every_sequence_once(seed):
    texts = random_texts(seed)
    size = int(np.random.default_rng(seed).integers(1, 40))
    data = Documents(tokenise(texts, BYTES), size, BYTES)
    batch = data.gather(np.arange(len(data)))
    wanted = [
        (tuple(inputs[i : i + size]), tuple(targets[i : i + size]))
        for inputs, targets in sequences(texts)
        for i in range(0, len(inputs), size)
    ]
    found = []
    for row in range(len(data)):
        tokens, targets, segments, positions = (
            batch[name][row] for name in ("tokens", "targets", "segments", "positions")
        )
        last = segments.max()
        changes = segments[segments > 0]
        assert (np.diff(changes) >= 0).all() and set(changes) == set(range(1, last + 1))
        assert (segments[len(changes) :] == 0).all()  # filling at the end alone
        assert not (tokens[segments == 0].any() or targets[segments == 0].any())
        for segment in range(1, last + 1):
            here = segments == segment
            assert positions[here].tolist() == list(range(here.sum()))
            found.append((tuple(tokens[here].tolist()), tuple(targets[here].tolist())))
    assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize("seed", range(20))
def test_a_stream_holds_every_target_once(seed):
    texts = random_texts(seed, mean=5)
    size = int(np.random.default_rng(seed).integers(1, 60))
    data = Stream(tokenise(texts, BYTES), size, BYTES)
    text = [*itertools.chain(*(inputs for inputs, _ in sequences(texts))), END]
    assert len(data) == -(-(len(text) - 1) // size)
    batch = data.gather(np.arange(len(data)))
    assert pairs(batch) == list(itertools.pairwise(text))
    filling = batch["segments"] == 0
    assert filling.sum() == len(data) * size - (len(text) - 1) < size
    for name in ("tokens", "targets", "positions"):
        assert not batch[name][filling].any()
    assert (batch["positions"] == np.where(filling, 0, np.arange(size))).all()


def test_training_windows_of_a_stream():
    text = "".join(map(chr, range(97, 97 + 26))) * 5
    data = Stream(tokenise([text], BYTES), 16, BYTES, seed=3)
    whole = [END, *text.encode(), END]
    index = np.repeat(np.arange(len(data)), 200)
    visit = np.tile(np.arange(200), len(data))
    batch = data.gather(index, visit)
    assert batch["segments"].all() and (batch["positions"] == np.arange(16)).all()
    windows = {tuple(whole[i : i + 17]): i for i in range(26 + 1)}  # the first alphabet's
    first = index == 0
    rows = np.concatenate([batch["tokens"], batch["targets"][:, -1:]], axis=1)[first]
    starts = [windows[tuple(row)] for row in rows.tolist()]
    assert set(starts) == set(range(16))  # jitter from 0 to N - 1
    joined = {tuple(whole[i : i + 17]) for i in range(len(whole) - 16)}
    every = np.concatenate([batch["tokens"], batch["targets"][:, -1:]], axis=1)
    assert set(map(tuple, every.tolist())) <= joined  # none leaves the stream
    last = (batch["tokens"] == whole[-17:-1]).all(axis=1) & (index == len(data) - 1)
    assert last.sum() > 100  # moved back to the end


def test_windows_are_a_function_of_seed_draw_and_index():
    corpus = tokenise(["".join(random_texts(1, mean=90)) * 3], BYTES)
    data = Stream(corpus, 32, BYTES, seed=1)
    index, visit = np.arange(len(data)) % 3, np.arange(len(data)) % 7
    whole = data.gather(index, visit)
    part = np.array([5, 2, 7])
    for name, values in data.gather(index[part], visit[part]).items():
        np.testing.assert_array_equal(values, whole[name][part])
    starts = lambda seed, visit: Stream(corpus, 32, BYTES, seed).gather(index[:3], visit)["tokens"]
    assert (starts(1, visit[:3]) != starts(2, visit[:3])).any()
    assert (starts(1, visit[:3]) != starts(1, visit[:3] + 1)).any()
    assert (data.gather(index)["tokens"] == data.gather(index)["tokens"]).all()


@pytest.mark.parametrize("visit", [None, np.array([4])])
def test_a_stream_shorter_than_a_window(visit):
    batch = Stream(tokenise(["ab"], BYTES), 6, BYTES).gather(np.array([0]), visit)
    assert batch["tokens"].tolist() == [[END, 97, 98, 0, 0, 0]]
    assert batch["targets"].tolist() == [[97, 98, END, 0, 0, 0]]
    assert batch["segments"].tolist() == [[1, 1, 1, 0, 0, 0]]


@pytest.mark.parametrize("seed", range(10))
def test_sentences(seed):
    texts = [*random_texts(seed), "", "x" * 12, "y" * 13]
    labels = np.arange(len(texts), dtype=np.int32) % 3
    data = Sentences(tokenise(texts, BYTES), labels, 3, 12, BYTES)
    index = np.random.default_rng(seed).permutation(len(texts))
    batch = data.gather(index)
    assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == {
        "tokens": ((len(texts), 12), "int32"),
        "mask": ((len(texts), 12), "bool"),
        "label": ((len(texts),), "int32"),
        "index": ((len(texts),), "int32"),
    }
    for i, tokens, mask, label in zip(
        index, batch["tokens"], batch["mask"], batch["label"], strict=True
    ):
        wanted = list(texts[i].encode())[:12] or [END]
        assert tokens[mask].tolist() == wanted == tokens[: len(wanted)].tolist()
        assert not tokens[~mask].any() and label == i % 3
    assert data.shortened == sum(len(text.encode()) > 12 for text in texts) > 0
    assert (len(data), data.classes, data.block_size) == (len(texts), 3, 12)


@pytest.mark.parametrize("kind", [Documents, Stream])
def test_batches_through_the_pipeline(kind):
    bpe = train_bpe(["abcd abc ab " * 50], 260)
    data = kind(tokenise(["abcd abc", "ab", ""] * 40, bpe), 8, bpe)
    assert data.tokenizer is bpe and data.block_size == 8
    alone, shared = (
        list(train_batches(data, batch_size=4, steps=3, seed=0, workers=n)) for n in (0, 1)
    )
    for a, b in zip(alone, shared, strict=True):
        assert a.keys() == b.keys() == INT32 | {"draw"}
        for name in INT32:
            assert a[name].dtype == np.int32
            np.testing.assert_array_equal(a[name], b[name])
    halves = [
        list(train_batches(data, batch_size=4, steps=3, seed=0, rows=rows))
        for rows in np.split(np.arange(4), 2)
    ]
    for whole, *parts in zip(alone, *halves, strict=True):
        for name in INT32:
            np.testing.assert_array_equal(whole[name], np.concatenate([p[name] for p in parts]))
    batches = list(eval_batches(data, 5))
    assert np.concatenate([b["index"] for b in batches])[: len(data)].tolist() == list(
        range(len(data))
    )


@pytest.fixture
def config(tmp_path):
    text = "".join(f"line {i} of the text\n" for i in range(300))
    (tmp_path / "text.txt").write_text(text)
    return LanguageDataConfig(
        name="files",
        data_dir=None,
        files=str(tmp_path / "text.txt"),
        text_key=None,
        held_out_fraction=0.1,
        tokenizer="bytes",
        packing="stream",
    )


def test_language_splits(config, tmp_path):
    splits = sources.load_language(config, 32, 257, seed=0)
    assert list(splits) == ["train", "validation", "test"]
    texts = []
    for data in splits.values():
        assert isinstance(data, Stream) and data.tokenizer.vocabulary == 257
        batch = data.gather(np.arange(len(data)))
        texts.append(data.tokenizer.decode(batch["targets"][batch["segments"] > 0]))
    assert "".join(texts) == (tmp_path / "text.txt").read_text()

    changed = dataclasses.replace(config, tokenizer="bpe", packing="documents")
    trained = sources.load_language(changed, 32, 270, seed=0)
    assert isinstance(trained["test"], Documents)
    bpe = trained["test"].tokenizer
    assert bpe.to_json() == train_bpe([texts[0]], 270).to_json()  # of the training split alone

    (tmp_path / "tokenizer.json").write_text(bpe.to_json())
    from_file = dataclasses.replace(config, tokenizer=str(tmp_path / "tokenizer.json"))
    for again in (
        sources.load_language(from_file, 32, 270, seed=0),
        sources.load_language(config, 32, 270, seed=0, tokenizer=bpe),
    ):
        assert again["train"].tokenizer.to_json() == bpe.to_json()
    first, second = (
        sources.load_language(config, 32, 257, seed=s)["train"].gather(np.arange(9), np.arange(9))
        for s in (0, 1)
    )
    assert (first["tokens"] != second["tokens"]).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(packing="streams"), "'streams'; accepted: documents, stream. Did you mean 'stream'"),
        (dict(tokenizer="byte"), "'byte' is neither 'bytes' nor 'bpe', and there is no such file"),
        (dict(tokenizer="bytes"), "vocabulary=300: the tokenizer has 257 tokens: set it to 257"),
    ],
)
def test_refusals(config, changes, message):
    with pytest.raises(BadInput, match=message):
        sources.load_language(dataclasses.replace(config, **changes), 32, 300, seed=0)


def test_a_file_that_is_no_tokenizer(config, tmp_path):
    wrong = dataclasses.replace(config, tokenizer=str(tmp_path / "text.txt"))
    with pytest.raises(BadInput, match="text.txt' is not a byte-level .*is not JSON"):
        sources.load_language(wrong, 32, 257, seed=0)
