"""Tokenizers: texts come back as they were, whatever they hold; training; files of others."""

import json
import pickle

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from train.data.text.tokenizer import (
    END,
    ByteTokenizer,
    StreamDecoder,
    from_json,
    train_bpe,
)
from train.errors import BadInput

RNG = np.random.default_rng(0)
LINES = [f"the cat number {i} sat on the mat, und die Kätzchen auch\n" for i in range(40)]
BPE = train_bpe(LINES, 300)
TOKENIZERS = [ByteTokenizer(), BPE]


def random_text(rng, length):
    """Characters of one to four bytes, no lone surrogates among them."""
    points = rng.integers(0, [0x80, 0x800, 0xD800, 0x10000], (length, 4))
    points[:, 3] = rng.integers(0x10000, 0x110000, length)
    return "".join(map(chr, points[np.arange(length), rng.integers(0, 4, length)]))


TEXTS = [
    "",
    " leading, trailing  and\r\n\tmixed\x00 space ",
    "e\u0301 É ﬁ 漢字 🙂\u200d",
    f"a text may spell {END}{END} itself",
    *LINES[:3],
    *(random_text(RNG, length) for length in (1, 7, 300)),
]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_texts_come_back(tokenizer):
    encoded = tokenizer.encode(TEXTS)
    for text, tokens in zip(TEXTS, encoded, strict=True):
        assert tokenizer.decode(tokens) == text
        assert tokenizer.byte_lengths[tokens].sum() == len(text.encode())
        assert tokens.dtype == np.uint16 and tokenizer.end not in tokens
        stream = StreamDecoder(tokenizer)
        assert "".join([*map(stream.push, tokens), stream.finish()]) == text


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_every_token_stands_for_bytes_but_the_end(tokenizer):
    contents = [tokenizer.token_bytes(token) for token in range(tokenizer.vocabulary)]
    assert tokenizer.byte_lengths.tolist() == [len(content) for content in contents]
    assert tokenizer.byte_lengths.dtype == np.int32
    assert [i for i, content in enumerate(contents) if not content] == [tokenizer.end]
    assert {content for content in contents if len(content) == 1} == {
        bytes([byte]) for byte in range(256)
    }
    assert tokenizer.decode([tokenizer.end]) == ""


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize(
    "copy", [lambda t: from_json(t.to_json()), lambda t: pickle.loads(pickle.dumps(t))]
)
def test_saved_and_read(tokenizer, copy):
    again = copy(tokenizer)
    assert (again.vocabulary, again.end) == (tokenizer.vocabulary, tokenizer.end)
    for a, b in zip(again.encode(TEXTS), tokenizer.encode(TEXTS), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bytes():
    (tokens,) = ByteTokenizer().encode(["aé"])
    assert tokens.tolist() == [97, 0xC3, 0xA9]
    assert (ByteTokenizer().vocabulary, ByteTokenizer().end) == (257, 256)


def test_training_is_deterministic_and_shortens():
    assert train_bpe(iter(LINES), 300).to_json() == BPE.to_json()
    assert BPE.vocabulary == 300
    (tokens,) = BPE.encode(["".join(LINES)])
    assert len(tokens) < 0.6 * len("".join(LINES).encode())


def test_training_refuses():
    with pytest.raises(BadInput, match="vocabulary=256: .* has 257 tokens or more"):
        train_bpe(LINES, 256)
    with pytest.raises(BadInput, match="=300: the training text gives 259 tokens: .* to 259 or"):
        train_bpe(["ab ab"], 300)
    assert train_bpe(["ab ab"], 259).vocabulary == 259


def test_incomplete_characters_are_held_back():
    stream = StreamDecoder(ByteTokenizer())
    assert [stream.push(byte) for byte in "a🙂".encode()] == ["a", "", "", "", "🙂"]
    assert (stream.push(0xC3), stream.push(ByteTokenizer().end), stream.finish()) == ("", "", "�")
    assert ByteTokenizer().decode([97, 0xC3]) == "a�"


def changed(**changes):
    return json.dumps(json.loads(BPE.to_json()) | changes)


def test_a_file_of_others_is_read():
    """As Llama 3 has it: split by a pattern first, several special tokens, another name."""
    pattern = {"type": "Split", "pattern": {"Regex": "\\d"}, "behavior": "Isolated"}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    special = {flag: False for flag in ("single_word", "lstrip", "rstrip", "normalized")}
    special |= {"special": True}
    text = changed(
        added_tokens=[
            {"id": 0, "content": "<|start|>", **special},
            {"id": 300, "content": "<|end_of_text|>", **special},
        ],
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [
                pattern | {"invert": False},
                level | {"use_regex": False},
            ],
        },
    ).replace(json.dumps(END) + ": 0", '"<|start|>": 0')
    tokenizer = from_json(text)
    assert (tokenizer.end, tokenizer.vocabulary) == (300, 301)
    for given, tokens in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
        assert tokenizer.decode(tokens) == given
    assert tokenizer.token_bytes(0) == b""
    (tokens,) = tokenizer.encode(["<|start|>12"])
    assert 0 not in tokens and [tokenizer.token_bytes(t) for t in tokens[-2:]] == [b"1", b"2"]


def word_level():
    tokenizer = tokenizers.Tokenizer(models.WordLevel({"a": 0, END: 1}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.to_str()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "something else was given"),
        (word_level(), "WordLevel with the pre-tokenizer Whitespace was given"),
        (changed(pre_tokenizer=None), "BPE with the pre-tokenizer None was given"),
        (BPE.to_json().replace('"dropout":null', '"dropout":0.1'), "without dropout"),
        (changed(normalizer={"type": "NFC"}), "does not reproduce a text"),
        (BPE.to_json().replace('"add_prefix_space":false', '"add_prefix_space":true'), "reproduce"),
        (changed(added_tokens=[]), "none of the special tokens <|endoftext|>"),
        (changed(normalizer={"type": "no such thing"}), "cannot be read"),
    ],
)
def test_other_tokenizers_are_refused(text, message):
    with pytest.raises(BadInput, match=message.replace("|", "\\|")):
        from_json(text)


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["bytes", "bpe"])
def test_a_text_that_comes_alone_is_one_text(tokenizer):
    (tokens,) = tokenizer.encode("the cat")
    np.testing.assert_array_equal(tokens, tokenizer.encode(["the cat"])[0])
    assert tokenizer.decode(tokens) == "the cat"


def test_pairs_are_counted_in_a_text_that_comes_alone():
    assert train_bpe("".join(LINES), 270).to_json() == train_bpe(["".join(LINES)], 270).to_json()
