"""Tokenizers: from text to numbers, and back without loss."""

import codecs
import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import tokenizers
from rich.console import Console
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from train.errors import BadInput

END = "<|endoftext|>"
_ENDS = (END, "<|end_of_text|>", "</s>")  # what published tokenizers call it
_BYTES = "bytes"
# A normaliser, a prefix of a space, or pre-tokens that are dropped would change something in it.
_PROBE = f"Éa e\u0301 ﬁ  b\t\n\n\u4e2d\u00a01234's\x00 {END}\U0001f642 "


class Tokenizer(Protocol):
    """Text to numbers and back: decode(encode(text)) is the text, whatever it holds."""

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        ...

    @property
    def end(self) -> int:
        """The token that parts one text from the next; no text is encoded to it."""
        ...

    @property
    def byte_lengths(self) -> np.ndarray:
        """Number of bytes of each token, int32 [vocabulary]; 0 for `end`."""
        ...

    def encode(self, texts: str | Sequence[str]) -> list[np.ndarray]:
        """Returns the tokens of each text, or of one, without `end`: uint16, uint32 past 65,536."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """Returns the bytes that a token stands for; none for `end`."""
        ...

    def decode(self, tokens: Iterable[int]) -> str:
        """Returns the text of tokens; bytes that are no UTF-8 become U+FFFD."""
        ...

    def to_json(self) -> str:
        """Returns all there is to it, for `from_json`."""
        ...


class ByteTokenizer:
    """The bytes of the text's UTF-8 are its tokens, 0 to 255; `end` is 256."""

    vocabulary = 257
    end = 256

    @property
    def byte_lengths(self) -> np.ndarray:
        """Number of bytes of each token, int32 [257]: 1, and 0 for `end`."""
        return (np.arange(self.vocabulary) != self.end).astype(np.int32)

    def encode(self, texts: str | Sequence[str]) -> list[np.ndarray]:
        """Returns the tokens of each text, or of one, without `end`: uint16."""
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint16) for text in _listed(texts)]

    def token_bytes(self, token: int) -> bytes:
        """Returns the byte that a token stands for; none for `end`."""
        return b"" if token == self.end else bytes([token])

    def decode(self, tokens: Iterable[int]) -> str:
        """Returns the text of tokens; bytes that are no UTF-8 become U+FFFD."""
        return _decode(self, tokens)

    def to_json(self) -> str:
        """Returns its JSON, for `from_json`."""
        return json.dumps({"type": _BYTES})


class BPETokenizer:
    """Byte-level byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909; Radford et al. 2019).

    A text that spells the name of a special token is encoded as any other text.

    Args:
      tokenizer: a byte-level BPE of the library `tokenizers`, with a special token for the end.

    Raises:
      BadInput: it has no special token for the end of a text.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        self._tokenizer = tokenizer
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        added = tokenizer.get_added_tokens_decoder()
        special = {token.content: place for place, token in added.items() if token.special}
        ends = [special[name] for name in _ENDS if name in special]
        if not ends:
            raise BadInput(
                "the tokenizer marks the end of a text with none of the special tokens "
                f"{', '.join(_ENDS)}: add one to its 'added_tokens'"
            )
        self.end = ends[0]
        tokens = tokenizer.get_vocab(with_added_tokens=True)
        self.vocabulary = max(tokens.values()) + 1
        self._bytes = [b""] * self.vocabulary  # of special tokens too: they stand for no text
        for token, place in tokens.items():
            if place not in added:
                self._bytes[place] = bytes(_byte_of()[character] for character in token)
            elif not added[place].special:
                self._bytes[place] = token.encode()
        self.byte_lengths = np.array([len(token) for token in self._bytes], np.int32)

    def __reduce__(self) -> Any:
        return from_json, (self.to_json(),)  # pickled, the library forgets what was set above

    def encode(self, texts: str | Sequence[str]) -> list[np.ndarray]:
        """Returns the tokens of each text, or of one, without `end`: uint16, uint32 past 65,536."""
        dtype = token_dtype(self.vocabulary)
        encoded = self._tokenizer.encode_batch_fast(_listed(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype) for encoding in encoded]

    def token_bytes(self, token: int) -> bytes:
        """Returns the bytes that a token stands for; none for special ones."""
        return self._bytes[token]

    def decode(self, tokens: Iterable[int]) -> str:
        """Returns the text of tokens; bytes that are no UTF-8 become U+FFFD."""
        return _decode(self, tokens)

    def to_json(self) -> str:
        """Returns its tokenizer.json, for `from_json` and for other programs."""
        return self._tokenizer.to_str()


class StreamDecoder:
    """Decodes tokens as they come; an incomplete character is held back until it is whole."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Returns the text that a token completes."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """Returns what was held back, as U+FFFD."""
        return self._decoder.decode(b"", final=True)


def token_dtype(vocabulary: int) -> type[np.unsignedinteger]:
    """Returns the smallest type of numbers that tokens are kept in."""
    return np.uint16 if vocabulary <= 1 << 16 else np.uint32


def train_bpe(texts: str | Iterable[str], vocabulary: int) -> BPETokenizer:
    """Returns the byte-pair encoding of texts; the same texts give the same one.

    Args:
      texts: to count pairs in, one or several.
      vocabulary: number of tokens, the 256 bytes and the end of text among them.

    Raises:
      BadInput: fewer than 257 tokens were asked for, or more than the texts give.
    """
    least = 257
    if vocabulary < least:
        raise BadInput(
            f"config.model.vocabulary={vocabulary}: a byte-pair encoding has {least} tokens or "
            "more, the bytes and the end of text"
        )
    texts = _listed(texts)
    most = least + sum(4 * len(text) for text in texts)  # a merge takes a byte, or more
    tokenizer = tokenizers.Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=min(vocabulary, most),  # for which it sets memory aside
        special_tokens=[END],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=Console(stderr=True).is_terminal,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokens = tokenizer.get_vocab_size()
    if tokens < vocabulary:
        raise BadInput(
            f"config.model.vocabulary={vocabulary}: the training text gives {tokens} tokens: set "
            f"config.model.vocabulary to {tokens} or fewer, or train on more text"
        )
    return BPETokenizer(tokenizer)


def from_json(text: str) -> Tokenizer:
    """Returns the tokenizer of a JSON: of `to_json`, or any tokenizer.json of a byte-level BPE.

    Raises:
      BadInput: no JSON, or that of a tokenizer of another kind, or of one that changes texts.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"the tokenizer is no JSON ({error}): give a tokenizer.json") from error
    if isinstance(content, dict) and content.get("type") == _BYTES:
        return ByteTokenizer()
    _check_byte_level(content)
    try:
        library_tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more special
        raise BadInput(f"the tokenizer cannot be read ({error}): give a tokenizer.json") from error
    tokenizer = BPETokenizer(library_tokenizer)
    (probe,) = tokenizer.encode([_PROBE])
    if tokenizer.decode(probe) != _PROBE:
        raise BadInput(
            "the tokenizer does not give a text back as it was: take 'normalizer' and "
            "'add_prefix_space' out of its JSON, or give another one"
        )
    return tokenizer


def _check_byte_level(content: Any) -> None:
    """Refuses the JSON of any but a deterministic byte-level BPE over all bytes."""
    model = (content.get("model") if isinstance(content, dict) else None) or {}
    outer = (content.get("pre_tokenizer") if model else None) or {}
    kinds = {part.get("type") for part in outer.get("pretokenizers", [outer])}
    vocabulary = model.get("vocab")
    if model.get("type") == "BPE" and "ByteLevel" in kinds and isinstance(vocabulary, dict):
        added = {token.get("content") for token in content.get("added_tokens", [])}
        alphabet = set(_byte_of())
        characters = set().union(*(vocabulary.keys() - added))
        if alphabet <= vocabulary.keys() and characters <= alphabet and not model.get("dropout"):
            return
    given = f"{model.get('type')} with the pre-tokenizer {outer.get('type')}"
    raise BadInput(
        "a byte-level BPE over all 256 bytes, without dropout, is accepted as a tokenizer; "
        f"{given if model else 'something else'} was given: give the tokenizer.json of one"
    )


@functools.cache
def _byte_of() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for, as GPT-2 chose them."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


def _listed(texts: str | Iterable[str]) -> list[str]:
    """The texts; one that comes alone is no list of letters."""
    return [texts] if isinstance(texts, str) else list(texts)


def _decode(tokenizer: Tokenizer, tokens: Iterable[int]) -> str:
    return b"".join(tokenizer.token_bytes(token) for token in tokens).decode(errors="replace")
