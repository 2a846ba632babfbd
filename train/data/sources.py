"""The data sets, by name."""

from collections.abc import Callable, Mapping
from typing import Any

from odeformer import ViTConfig
from odeformer.errors import unknown
from train.config.data import ImageDataConfig, LanguageDataConfig, SentenceDataConfig
from train.config.run import TASKS, RunConfig
from train.config.tables import DOCUMENT_SETS, IMAGE_SETS, SENTENCE_SETS
from train.data.images import digits, folder, prepared
from train.data.images.checks import (
    check_digits_keys,
    check_folder_keys,
    check_image_splits,
    check_prepared_keys,
)
from train.data.split import Split
from train.data.text.sources import load_language, load_sentences
from train.data.text.tokenizer import Tokenizer
from train.errors import BadInput

_SETS = {
    ImageDataConfig: IMAGE_SETS,
    LanguageDataConfig: DOCUMENT_SETS,
    SentenceDataConfig: SENTENCE_SETS,
}


def register(name: str, loader: Callable[[Any], Any] | None = None, *, task: str = "images") -> Any:
    """Adds a data set under a name, a value of config.data.name: as a decorator, or at once.

    Args:
      name: of the set.
      loader: takes the group `data` of the config, and returns the splits 'train', 'validation' and
        'test': for images an `Images` each, or what meets `ImageSplit` (both in
        train/data/images/arrays.py), for language a list of texts, for sentences a `LabelledTexts`
        (train/data/text/documents.py). None: the decorated function.
      task: that reads it, or one like it.

    Raises:
      BadInput: the name is taken, or there is no such task.
    """
    if task not in TASKS:
        raise BadInput(f"task: {unknown('task', task, TASKS)}")

    table = _SETS[TASKS[task].data]
    return table.register(name) if loader is None else table.register(name, loader)


@IMAGE_SETS.define("digits")
def _digits(data: ImageDataConfig) -> Mapping[str, Split]:
    check_digits_keys(data)
    return digits.load(data.fold, data.validation_examples)


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
    if data.name in IMAGE_SETS:
        splits = IMAGE_SETS[data.name](data)
        check_image_splits(data.name, splits)
        return dict(splits)

    if data.name == "folder":
        check_folder_keys(data)
        return folder.load(data, image_shape, seed)

    check_prepared_keys(data)
    return prepared.load(data, image_shape[:2], seed)
