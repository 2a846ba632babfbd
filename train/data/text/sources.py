"""The text sets, by name: read, made into tokens, and cut into blocks."""

import os
import pathlib
import sys

from odeformer.errors import unknown
from train.config.data import PACKINGS, LanguageDataConfig, SentenceDataConfig
from train.data.text import documents
from train.data.text.blocks import Documents, Sentences, Stream, tokenise
from train.data.text.tokenizer import ByteTokenizer, Tokenizer, from_json, train_bpe
from train.errors import BadInput
from train.files import absolute


def load_language(
    config: LanguageDataConfig,
    block_size: int,
    vocabulary: int,
    seed: int,
    tokenizer: Tokenizer | None = None,
) -> dict[str, Documents | Stream]:
    """Returns the splits 'train', 'validation' and 'test' of documents, as blocks of tokens.

    Args:
      config: which documents, how they are split, made into tokens and packed.
      block_size: tokens of a block.
      vocabulary: number of tokens that the model knows.
      seed: of where the training windows of a stream begin.
      tokenizer: that of a saved run, instead of config.tokenizer.

    Raises:
      BadInput: a set, tokenizer or packing that is not there, or another vocabulary.
    """
    if config.packing not in PACKINGS:
        raise BadInput(str(unknown("config.data.packing", config.packing, PACKINGS)))
    ready = tokenizer or _ready_tokenizer(config.tokenizer)
    _check_vocabulary(ready, vocabulary)
    texts = documents.load_documents(config)
    ready = ready or train_bpe(texts["train"], vocabulary)
    splits: dict[str, Documents | Stream] = {}
    for name in list(texts):
        corpus = tokenise(texts.pop(name), ready, f"{config.name}/{name}")
        if config.packing == "documents":
            splits[name] = Documents(corpus, block_size, ready)
        else:
            splits[name] = Stream(corpus, block_size, ready, seed)
    return splits


def load_sentences(
    config: SentenceDataConfig,
    block_size: int,
    vocabulary: int,
    tokenizer: Tokenizer | None = None,
) -> dict[str, Sentences]:
    """Returns the splits 'train', 'validation' and 'test' of labelled sentences, as tokens.

    Args:
      config: which sentences, how they are split and made into tokens.
      block_size: the most tokens of a sentence.
      vocabulary: number of tokens that the model knows.
      tokenizer: that of a saved run, instead of config.tokenizer.

    Raises:
      BadInput: a set, tokenizer or packing that is not there, or another vocabulary.
    """
    ready = tokenizer or _ready_tokenizer(config.tokenizer)
    _check_vocabulary(ready, vocabulary)
    splits = documents.load_sentences(config)
    ready = ready or train_bpe(splits["train"].texts, vocabulary)
    sentences = {}
    for name, split in splits.items():
        corpus = tokenise(split.texts, ready, f"{config.name}/{name}")
        sentences[name] = Sentences(corpus, split.labels, split.classes, block_size, ready)
        if shortened := sentences[name].shortened:
            print(
                f"{config.name}/{name}: {shortened:,} of {len(split.texts):,} texts are cut off "
                f"behind config.model.block_size={block_size} tokens",
                file=sys.stderr,
            )
    return sentences


def _ready_tokenizer(name: str) -> Tokenizer | None:
    """Returns the tokenizer of that name or file; None for one that is trained first."""
    if name == "bytes":
        return ByteTokenizer()
    if name == "bpe":
        return None
    path = absolute(name)
    if not os.path.isfile(path):
        raise BadInput(
            f"config.data.tokenizer={name!r} is neither 'bytes' nor 'bpe', and no such file is "
            "there: give one of these words, or the path of a tokenizer.json"
        )
    try:
        return from_json(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"config.data.tokenizer={name!r} is no byte-level tokenizer.json ({error}): give "
            "another"
        ) from error


def _check_vocabulary(tokenizer: Tokenizer | None, vocabulary: int) -> None:
    if tokenizer is not None and tokenizer.vocabulary != vocabulary:
        raise BadInput(
            f"config.model.vocabulary={vocabulary}: the tokenizer has {tokenizer.vocabulary} "
            f"tokens: set it to {tokenizer.vocabulary}"
        )
