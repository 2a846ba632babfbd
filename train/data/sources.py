"""The data sets, by name."""

from collections.abc import Mapping
from typing import Any

from train.config.data import ImageDataConfig, LanguageDataConfig
from train.config.run import RunConfig
from train.data.images import digits, prepared
from train.data.split import Split
from train.data.text.sources import load_language, load_sentences
from train.data.text.tokenizer import Tokenizer
from train.errors import BadInput


def load_splits(config: RunConfig, tokenizer: Tokenizer | None = None) -> Mapping[str, Any]:
    """Returns the splits 'train', 'validation' and 'test' of a run's data set.

    Args:
      config: of the run.
      tokenizer: that of a saved run, for text; None to make it as the config says.

    Returns:
      A `train.data.split.Split` for each name; what else it offers depends on the run's task.

    Raises:
      BadInput: no data set has the name, or the data do not fit the config.
    """
    data = config.data
    model: Any = config.model
    if isinstance(data, ImageDataConfig):
        return _load_images(data, model.image_shape[:2], config.seed)
    if isinstance(data, LanguageDataConfig):
        return load_language(data, model.block_size, model.vocabulary, config.seed, tokenizer)
    return load_sentences(data, model.block_size, model.vocabulary, tokenizer)


def _load_images(data: ImageDataConfig, image_size: tuple[int, int], seed: int) -> dict[str, Split]:
    if data.name == "digits":
        if data.fold is not None and not 0 <= data.fold < digits.FOLDS:
            raise BadInput(f"config.data.fold is 0 to {digits.FOLDS - 1}; {data.fold} was given")
        if data.test_fraction:
            raise BadInput(
                f"config.data.test_fraction={data.test_fraction} has no effect: 'digits' has a "
                "test split of its own; set it to 0"
            )
        return dict(digits.load(data.fold))
    if data.fold is not None:
        raise BadInput(
            f"config.data.fold={data.fold}: {data.name} has a test split of its own; folds are "
            "for 'digits', leave it out"
        )
    return prepared.load(data, image_size, seed)
