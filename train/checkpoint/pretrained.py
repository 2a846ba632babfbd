"""A pretrained model in the published layout, on a config's data: what a run would have been."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from odeformer import LMConfig, ViTConfig
from odeformer.interop import find_folder, has_preparation, load_preparation, load_pretrained
from train import command_line
from train.checkpoint.pretrained_checks import (
    check_changes,
    check_fits,
    check_task,
    check_tokens,
    no_tokenizer,
    reading_pretrained,
)
from train.config.data import LanguageDataConfig
from train.config.run import RunConfig, base_task
from train.config.stored import for_evaluation
from train.data.images.standardised import as_prepared
from train.data.sizes import with_sizes
from train.data.sources import load_splits
from train.data.text.sources import load_language
from train.data.text.tokenizer import Tokenizer, from_json
from train.data.text.tokenizer_checks import reading
from train.errors import warn
from train.startup import note

TOKENIZER = "tokenizer.json"


class Pretrained(NamedTuple):
    """A pretrained model to evaluate.

    Attributes:
      folder: of the model; its name on the Hub was downloaded.
      config: of the data, with the model of the folder.
      params: the model's parameters.
    """

    folder: pathlib.Path
    config: RunConfig
    params: Any


def parse_pretrained(
    argv: Sequence[str], own_flags: flags.FlagValues
) -> tuple[RunConfig, dict[str, Any]]:
    """Parses the flags of a program that reads a pretrained model.

    Args:
      argv: the command line.
      own_flags: the program's flags; filled in.

    Returns:
      The config of --config=FILE.py, as the flags change it, and their changes by key.

    Raises:
      BadInput: flags or keys that are unknown or have no effect, or values that do not fit.
    """
    changes: dict[str, Any] = {}

    def complete(file: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
        changes.update(given)
        return with_sizes(file, given)

    config = command_line.parse_config(argv, own_flags, complete=complete)
    changes.pop("modules", None)
    check_changes(changes)
    return config, changes


def load(folder: str, config: RunConfig, changes: Mapping[str, Any]) -> Pretrained:
    """Reads a pretrained model.

    Args:
      folder: of the model, or its name on the Hugging Face Hub.
      config: of the data on which it is evaluated; its own model and depth are replaced.
      changes: keys of `parse_pretrained`; those of depth change how the model is integrated.

    Raises:
      BadInput: a folder that is not read, a model for another task than the config's, or a depth
        that the weights are not those of.
    """
    with reading_pretrained(folder):
        path = find_folder(folder)
        loaded: Any = load_pretrained(path)
    model, variables = loaded

    # The checks of the file's config against its own model say nothing of this one.
    kind = {ViTConfig: "images", LMConfig: "language"}[type(model.config)]
    check_task(folder, kind, base_task(config.task))
    replaced = dataclasses.replace(config, model=model.config)
    return Pretrained(path, for_evaluation(replaced, changes), variables["params"])


def load_data(pretrained: Pretrained) -> Mapping[str, Any]:
    """Returns the splits of the config's data, prepared as the pretrained model's inputs were.

    Raises:
      BadInput: data that do not fit the model.
    """
    folder, config, _ = pretrained
    note(f"reading the data, {config.data.name}")
    if isinstance(config.data, LanguageDataConfig):
        return _language(folder, config, config.data)

    splits = load_splits(config)
    check_fits(config, splits["test"])
    with reading_pretrained(str(folder)):
        preparation = load_preparation(folder) if has_preparation(folder) else None
    if preparation is None:
        warn(
            f"{folder} has no preprocessor_config.json: images are standardised by the mean and "
            f"deviation of the data set {config.data.name!r}, and not by those that the model was "
            "trained with"
        )
        return splits

    return {name: as_prepared(split, preparation) for name, split in splits.items()}


def published_tokenizer(folder: pathlib.Path) -> Tokenizer | None:
    """Returns the tokeniser in a pretrained model's folder; None if there is none.

    Raises:
      BadInput: one that cannot be read, or is no byte-level BPE.
    """
    path = folder / TOKENIZER
    if not path.exists():
        return None

    with reading(str(path)):
        return from_json(path.read_text(encoding="utf-8"))


def _language(
    folder: pathlib.Path, config: RunConfig, data: LanguageDataConfig
) -> Mapping[str, Any]:
    """The splits as tokens of the folder's tokeniser, or of the one that the config names."""
    model: Any = config.model
    tokenizer = published_tokenizer(folder)
    if tokenizer is None and data.tokenizer == "bpe":
        raise no_tokenizer(folder)

    # Published vocabularies are rounded up: the tokeniser may have fewer tokens than the model.
    vocabulary = model.vocabulary
    if tokenizer is not None:
        check_tokens(folder, tokenizer.vocabulary, vocabulary)
        vocabulary = tokenizer.vocabulary
    return load_language(data, model.block_size, vocabulary, config.seed, tokenizer)
