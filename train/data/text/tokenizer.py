"""Tokenizers: from text to tokens, and back without loss."""

import codecs
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

from train.data.text.byte_level import byte_of
from train.data.text.tokenizer_checks import (
    LEAST_BPE,
    check_asked_size,
    check_byte_level,
    check_trained_size,
)
from train.errors import BadInput

END = "<|endoftext|>"
_ENDS = (END, "<|end_of_text|>", "</s>")  # what published tokenizers call it
_BYTES = "bytes"

# A normaliser, a prefix of a space, or pre-tokens that are dropped would change something in it.
_PROBE = f"Éa e\u0301 ﬁ  b\t\n\n\u4e2d\u00a01234's\x00 {END}\U0001f642 "


class Tokenizer(Protocol):
    """Text to tokens and back: decode(encode(text)) is the text, whatever it holds."""

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        ...

    @property
    def end(self) -> int:
        """The token that separates one text from the next; no text is encoded to it."""
        ...

    @property
    def byte_lengths(self) -> np.ndarray:
        """Number of bytes of each token, int32 [vocabulary]; 0 for `end`."""
        ...

    def encode(self, texts: str | Sequence[str]) -> list[np.ndarray]:
        """Returns each text's tokens, without `end`: uint16, or uint32 beyond 65,536 tokens.

        Args:
          texts: several texts, or a str, which is a single text.
        """
        ...

    def token_bytes(self, token: int) -> bytes:
        """Returns the bytes that a token stands for; empty for `end`."""
        ...

    def decode(self, tokens: Iterable[int]) -> str:
        """Returns the text of tokens; bytes that are not valid UTF-8 become U+FFFD."""
        ...

    def to_json(self) -> str:
        """Returns the whole tokenizer as JSON, for `from_json`."""
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
        """Returns each text's tokens, without `end`: uint16."""
        # From uint8 to uint16: `end` does not fit into a byte.
        return [
            np.frombuffer(text.encode(), np.uint8).astype(np.uint16) for text in _as_list(texts)
        ]

    def token_bytes(self, token: int) -> bytes:
        """Returns the byte that a token stands for; empty for `end`."""
        return b"" if token == self.end else bytes([token])

    def decode(self, tokens: Iterable[int]) -> str:
        """Returns the text of tokens; bytes that are not valid UTF-8 become U+FFFD."""
        return _decode(self, tokens)

    def to_json(self) -> str:
        """Returns its JSON, for `from_json`."""
        return json.dumps({"type": _BYTES})


class BPETokenizer:
    """Byte-level byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909; Radford et al. 2019).

    A text that spells the name of a special token is encoded like any other text.

    Args:
      tokenizer: a byte-level BPE of the library `tokenizers`, with a special token for the end.

    Raises:
      BadInput: it has no special token for the end of a text.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        self._tokenizer = tokenizer

        # Published files may truncate or pad texts, and by default the library takes a text that
        # spells a special token's name for that token: decode(encode(text)) would not be the text.
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()

        added = tokenizer.get_added_tokens_decoder()
        special = {token.content: number for number, token in added.items() if token.special}
        ends = [special[name] for name in _ENDS if name in special]
        if not ends:
            raise BadInput(
                "the tokenizer marks the end of a text with none of the special tokens "
                f"{', '.join(_ENDS)}: add one to its 'added_tokens'"
            )
        self.end = ends[0]

        # Token numbers may have gaps: the largest one counts, not how many there are.
        tokens = tokenizer.get_vocab(with_added_tokens=True)
        self.vocabulary = max(tokens.values()) + 1

        # Special tokens keep no bytes: they stand for no text.
        self._bytes = [b""] * self.vocabulary
        for token, number in tokens.items():
            if number not in added:
                self._bytes[number] = bytes(byte_of()[character] for character in token)
            elif not added[number].special:
                self._bytes[number] = token.encode()

        self.byte_lengths = np.array([len(token) for token in self._bytes], np.int32)

    def __reduce__(self) -> Any:
        # When pickled, the library's tokenizer forgets `encode_special_tokens`.
        return from_json, (self.to_json(),)

    def encode(self, texts: str | Sequence[str]) -> list[np.ndarray]:
        """Returns each text's tokens, without `end`: uint16, or uint32 beyond 65,536 tokens."""
        dtype = token_dtype(self.vocabulary)
        encoded = self._tokenizer.encode_batch_fast(_as_list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype) for encoding in encoded]

    def token_bytes(self, token: int) -> bytes:
        """Returns the bytes that a token stands for; empty for special ones."""
        return self._bytes[token]

    def decode(self, tokens: Iterable[int]) -> str:
        """Returns the text of tokens; bytes that are not valid UTF-8 become U+FFFD."""
        return _decode(self, tokens)

    def to_json(self) -> str:
        """Returns its tokenizer.json, for `from_json` and for other programs."""
        return self._tokenizer.to_str()


class StreamDecoder:
    """Decodes tokens one by one; an incomplete character is held back until it is complete."""

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
    """Returns the smallest dtype that holds the tokens of a vocabulary."""
    return np.uint16 if vocabulary <= 1 << 16 else np.uint32


def train_bpe(texts: str | Iterable[str], vocabulary: int) -> BPETokenizer:
    """Returns the byte-pair encoding of texts; the same texts give the same tokenizer.

    Args:
      texts: where pairs are counted, one text or several.
      vocabulary: number of tokens, the 256 bytes and the end of text included.

    Raises:
      BadInput: fewer than 257 tokens were asked for, or more than the texts give.
    """
    check_asked_size(vocabulary)
    tokenizer = tokenizers.Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()

    # The trainer allocates memory for the size that it is asked for, however short the text. Every
    # merge uses up a byte or more, and a character has at most four: no text gives more tokens.
    texts = _as_list(texts)
    most = LEAST_BPE + sum(4 * len(text) for text in texts)
    trainer = BpeTrainer(
        vocab_size=min(vocabulary, most),
        special_tokens=[END],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=Console(stderr=True).is_terminal,
    )
    tokenizer.train_from_iterator(texts, trainer)

    check_trained_size(tokenizer.get_vocab_size(), vocabulary)
    return BPETokenizer(tokenizer)


def from_json(text: str) -> Tokenizer:
    """Returns the tokenizer of a JSON: of `to_json`, or any tokenizer.json of a byte-level BPE.

    Raises:
      BadInput: it is not JSON, not a byte-level BPE, or one that changes texts.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"the tokenizer is not JSON ({error}): give a tokenizer.json") from error

    if isinstance(content, dict) and content.get("type") == _BYTES:
        return ByteTokenizer()

    check_byte_level(content)
    tokenizer = BPETokenizer(_from_str(text))

    # Too many settings may change a text to check them one by one.
    (probe,) = tokenizer.encode([_PROBE])
    if tokenizer.decode(probe) != _PROBE:
        raise BadInput(
            "the tokenizer does not reproduce a text exactly: take 'normalizer' and "
            "'add_prefix_space' out of its JSON, or give another one"
        )
    return tokenizer


def _from_str(text: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(text)
    # The library raises no class of its own.
    except Exception as error:
        raise BadInput(f"the tokenizer cannot be read ({error}): give a tokenizer.json") from error


def _as_list(texts: str | Iterable[str]) -> list[str]:
    # A str is a single text, and not an iterable of letters.
    return [texts] if isinstance(texts, str) else list(texts)


def _decode(tokenizer: Tokenizer, tokens: Iterable[int]) -> str:
    # Joined before they are decoded: a character may be spread over several tokens.
    return b"".join(tokenizer.token_bytes(token) for token in tokens).decode(errors="replace")
