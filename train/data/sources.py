"""The data sets, by name."""

from train.config import DataConfig
from train.data import digits, tfds_images
from train.data.arrays import Split
from train.errors import BadInput


def load_splits(
    config: DataConfig, image_size: tuple[int, int] = (32, 32), seed: int = 0
) -> dict[str, Split]:
    """Returns the splits 'train', 'validation' and 'test' of a data set.

    Args:
      config: its name and how it is split.
      image_size: height and width in pixels; sets of varying sizes are cropped to it.
      seed: of what is drawn at random while such a set is read.

    Raises:
      BadInput: no data set has the name, or it does not take the config's fold.
    """
    if config.name == "digits":
        if config.fold is not None and not 0 <= config.fold < digits.FOLDS:
            raise BadInput(f"config.data.fold is 0 to {digits.FOLDS - 1}; {config.fold} was given")
        return dict(digits.load(config.fold))
    if config.fold is not None:
        raise BadInput(
            f"config.data.fold={config.fold}: {config.name} has a test split of its own; folds are "
            "for 'digits', leave it out"
        )
    return tfds_images.load(config, image_size, seed)
