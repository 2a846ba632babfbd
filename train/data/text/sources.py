"""The text sets, by name: read, tokenized, and cut into blocks."""

import pathlib
import sys

from train.config.data import LanguageDataConfig, SentenceDataConfig
from train.data.text import documents
from train.data.text.blocks import Documents, Sentences, Stream, tokenise
from train.data.text.checks import check_packing, check_vocabulary
from train.data.text.files import fingerprint
from train.data.text.tokenizer import ByteTokenizer, Tokenizer, from_json, train_bpe
from train.data.text.tokenizer_checks import check_file, reading
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
      config: the documents, and how they are split, tokenized and packed.
      block_size: number of tokens per block.
      vocabulary: number of tokens of the model.
      seed: of the beginnings of a stream's training windows.
      tokenizer: that of a saved run, which replaces config.tokenizer.

    Raises:
      BadInput: a set, tokenizer or packing that does not exist, or another vocabulary.
    """
    check_packing(config.packing)
    tokenizer = _find_tokenizer(tokenizer, config.tokenizer, vocabulary)

    texts = documents.load_documents(config)
    tokenizer = tokenizer or train_bpe(texts["train"], vocabulary)

    # Files change; the text of a prepared set does not.
    origin = fingerprint(texts) if config.name == "files" else None

    splits: dict[str, Documents | Stream] = {}
    for name in list(texts):
        # Each split's texts are let go once they are tokens: both may not fit into memory.
        corpus = tokenise(texts.pop(name), tokenizer, f"{config.name}/{name}")
        if config.packing == "documents":
            splits[name] = Documents(corpus, block_size, tokenizer, origin)
        else:
            splits[name] = Stream(corpus, block_size, tokenizer, seed, origin)
    return splits


def load_sentences(
    config: SentenceDataConfig,
    block_size: int,
    vocabulary: int,
    tokenizer: Tokenizer | None = None,
) -> dict[str, Sentences]:
    """Returns the splits 'train', 'validation' and 'test' of labelled sentences, as tokens.

    Args:
      config: the sentences, and how they are split and tokenized.
      block_size: the most tokens of a sentence.
      vocabulary: number of tokens of the model.
      tokenizer: that of a saved run, which replaces config.tokenizer.

    Raises:
      BadInput: a set or tokenizer that does not exist, or another vocabulary.
    """
    tokenizer = _find_tokenizer(tokenizer, config.tokenizer, vocabulary)

    splits = documents.load_sentences(config)
    tokenizer = tokenizer or train_bpe(splits["train"].texts, vocabulary)

    sentences = {}
    for name, split in splits.items():
        corpus = tokenise(split.texts, tokenizer, f"{config.name}/{name}")
        sentences[name] = Sentences(
            corpus,
            split.labels,
            split.classes,
            block_size=block_size,
            tokenizer=tokenizer,
            class_names=split.class_names,
            origin=split.origin,
        )

        # Reported, as it costs accuracy and leaves no other trace.
        if shortened := sentences[name].shortened:
            print(
                f"{config.name}/{name}: {shortened:,} of {len(split.texts):,} texts are truncated "
                f"to config.model.block_size={block_size} tokens",
                file=sys.stderr,
            )
    return sentences


def _find_tokenizer(saved: Tokenizer | None, name: str, vocabulary: int) -> Tokenizer | None:
    """Returns the saved or named tokenizer; None for 'bpe', which is trained on the texts."""
    tokenizer = saved or load_tokenizer(name)

    # Before the texts are read, which may take long.
    if tokenizer is not None:
        check_vocabulary(tokenizer, vocabulary)
    return tokenizer


def load_tokenizer(name: str) -> Tokenizer | None:
    """Returns the tokenizer that config.data.tokenizer names; None for 'bpe', which is trained.

    Raises:
      BadInput: there is no such file, or it is none.
    """
    if name == "bytes":
        return ByteTokenizer()
    if name == "bpe":
        return None

    path = absolute(name)
    check_file(name, path)
    with reading(name):
        return from_json(pathlib.Path(path).read_text(encoding="utf-8"))
