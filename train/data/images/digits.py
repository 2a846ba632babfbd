"""The embedded data set: 1,797 handwritten digits of 8x8 pixels, shipped with scikit-learn."""

from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold, train_test_split

from train.data.images.arrays import Images, channel_moments

TEST, VALIDATION, FOLDS = 360, 180, 5
_PEAK = 16.0  # each pixel counts the dark ones in a square of 4 x 4 of the scanned image

# Fixed, and not the seed of a run: all runs share their splits.
_SPLIT_SEED = 0


def load(fold: int | None = None, validation_examples: int = 0) -> dict[str, Images]:
    """Returns the splits 'train' (1,257), 'validation' (180) and 'test' (360), stratified.

    Args:
      fold: 0 to 4: test on this fifth of all images (360 or 359 of them), so that the five folds
        test every image once; None: test on a fixed part of them.
      validation_examples: with a fold, images that no fold trains or tests on, the validation split
        of all of them: what is chosen by it has seen no test image. 0: 180 of the training part.

    Source: Alpaydin, Kaynak, 'Optical Recognition of Handwritten Digits', UCI repository, 1998.
    """
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.uint8)
    labels = labels.astype(np.int32)

    # What lies outside of every fold is set aside before the folds are made.
    index, validation = np.arange(len(labels)), None
    if validation_examples:
        index, validation = _split(index, labels, validation_examples)

    if fold is None:
        train, test = _split(index, labels, TEST)
    else:
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=_SPLIT_SEED)
        train, test = (index[part] for part in list(folds.split(index, labels[index]))[fold])

    if validation is None:
        train, validation = _split(train, labels, VALIDATION)

    # The moments are the training pixels', in every split: nothing of a test image is used.
    mean, std = channel_moments(images[train], peak=_PEAK)
    return {
        name: Images(
            images[index],
            labels[index],
            classes=10,
            peak=_PEAK,
            mean=mean,
            std=std,
            class_names=tuple("0123456789"),
        )
        for name, index in (("train", train), ("validation", validation), ("test", test))
    }


def _split(index: np.ndarray, labels: np.ndarray, held_out: int) -> Any:
    return train_test_split(
        index, test_size=held_out, stratify=labels[index], random_state=_SPLIT_SEED
    )
