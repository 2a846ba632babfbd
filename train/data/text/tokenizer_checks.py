"""Which tokenizers are accepted: byte-level ones, over all bytes, of the size that is asked for."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from train.data.text.byte_level import byte_of
from train.errors import BadInput

LEAST_BPE = 257  # the bytes and the end of text


def check_file(name: str, path: str) -> None:
    """Refuses config.data.tokenizer=name where it is no word, and its path no file."""
    if not os.path.isfile(path):
        raise BadInput(
            f"config.data.tokenizer={name!r} is neither 'bytes' nor 'bpe', and there is no such "
            "file: give one of these words, or the path of a tokenizer.json"
        )


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Reports as bad input that config.data.tokenizer=name cannot be read."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise BadInput(
            f"config.data.tokenizer={name!r} is not a byte-level tokenizer.json ({error}): give "
            "another"
        ) from error


def check_asked_size(vocabulary: int) -> None:
    """Refuses a vocabulary too small for the bytes and the end of text."""
    if vocabulary < LEAST_BPE:
        raise BadInput(
            f"config.model.vocabulary={vocabulary}: a byte-pair encoding has {LEAST_BPE} tokens or "
            "more, the bytes and the end of text"
        )


def check_trained_size(tokens: int, vocabulary: int) -> None:
    """Refuses a training text that gives fewer tokens than the vocabulary holds."""
    if tokens < vocabulary:
        raise BadInput(
            f"config.model.vocabulary={vocabulary}: the training text gives {tokens} tokens: set "
            f"config.model.vocabulary to {tokens} or fewer, or train on more text"
        )


def check_byte_level(content: Any) -> None:
    """Refuses a tokenizer's parsed JSON unless it is a deterministic BPE over all 256 bytes."""
    model = (content.get("model") if isinstance(content, dict) else None) or {}
    pre_tokenizer = (content.get("pre_tokenizer") if model else None) or {}
    if not _is_byte_level(content, model, pre_tokenizer):
        kind = f"{model.get('type')} with the pre-tokenizer {pre_tokenizer.get('type')}"
        raise BadInput(
            "a byte-level BPE over all 256 bytes, without dropout, is accepted as a tokenizer; "
            f"{kind if model else 'something else'} was given: give the tokenizer.json of one"
        )


def _is_byte_level(content: Any, model: Any, pre_tokenizer: Any) -> bool:
    # A sequence may split by a pattern first, as Llama 3's does.
    kinds = {part.get("type") for part in pre_tokenizer.get("pretokenizers", [pre_tokenizer])}
    vocabulary = model.get("vocab")
    if model.get("type") != "BPE" or "ByteLevel" not in kinds or not isinstance(vocabulary, dict):
        return False

    # Added tokens are spelt in plain characters, all others in the alphabet's.
    added = {token.get("content") for token in content.get("added_tokens", [])}
    characters = set().union(*(vocabulary.keys() - added))
    alphabet = set(byte_of())
    is_complete = alphabet <= vocabulary.keys() and characters <= alphabet

    return is_complete and not model.get("dropout")
