"""The data sets, by name."""

from collections.abc import Mapping
from typing import Any

from odeformer import ViTConfig
from train.config.data import ImageDataConfig, LanguageDataConfig
from train.config.run import RunConfig
from train.data.images import digits, folder, prepared
from train.data.images.checks import (
    check_digits_keys,
    check_folder_keys,
    check_prepared_keys,
)
from train.data.split import Split
from train.data.text.sources import load_language, load_sentences
from train.data.text.tokenizer import Tokenizer


def load_splits(config: RunConfig, tokenizer: Tokenizer | None = None) -> Mapping[str, Any]:
    """Returns the splits 'train', 'validation' and 'test' of a run's data set.

    Args:
      config: which data set, and the sizes of the model that it is read for.
      tokenizer: that of a saved run, for text; None to make the one that the config names.

    Returns:
      A `train.data.split.Split` for each name; what else it offers depends on the run's task.

    Raises:
      BadInput: no data set has the name, or the data do not fit the config.
    """
    data, model = config.data, config.model

    if isinstance(model, ViTConfig):
        assert isinstance(data, ImageDataConfig)
        return _load_images(data, model.image_shape, config.seed)

    assert not isinstance(data, ImageDataConfig)
    if isinstance(data, LanguageDataConfig):
        return load_language(data, model.block_size, model.vocabulary, config.seed, tokenizer)
    return load_sentences(data, model.block_size, model.vocabulary, tokenizer)


def _load_images(
    data: ImageDataConfig, image_shape: tuple[int, int, int], seed: int
) -> dict[str, Split]:
    if data.name == "digits":
        check_digits_keys(data)
        return dict(digits.load(data.fold, data.validation_examples))

    if data.name == "folder":
        check_folder_keys(data)
        return folder.load(data, image_shape, seed)

    check_prepared_keys(data)
    return prepared.load(data, image_shape[:2], seed)
