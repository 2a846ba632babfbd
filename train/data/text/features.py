"""The features of text sets prepared by tensorflow-datasets: found by name and kind, or refused."""

from typing import Any

import tensorflow_datasets as tfds

from train.data.text.feature_checks import check_label_key, check_one_text, check_text_key

_TEXT_KEYS = ("text", "sentence")  # the first of these, where a set has several texts


def find_text_key(builder: Any, key: str | None) -> str:
    """Returns the name of the feature that holds the text.

    Args:
      builder: of a prepared set.
      key: the feature that the config names; None to find it.

    Raises:
      BadInput: the key is not a text, or without a key the set has no text, or several of them and
        none under a usual name.
    """
    features: dict[str, Any] = dict(builder.info.features)
    texts = [name for name in features if isinstance(features[name], tfds.features.Text)]

    if key is not None:
        check_text_key(builder.name, features, texts, key)
        return key

    check_one_text(builder.name, features, texts, _TEXT_KEYS)
    return texts[0] if len(texts) == 1 else next(name for name in _TEXT_KEYS if name in texts)


def class_names(builder: Any, key: str) -> tuple[str, ...]:
    """Returns the names of the classes of the feature that holds the label.

    Raises:
      BadInput: the key is not a class label.
    """
    features: dict[str, Any] = dict(builder.info.features)
    check_label_key(builder.name, features, key)
    return tuple(features[key].names)
