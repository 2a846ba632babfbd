"""The features of text sets prepared by tensorflow-datasets: found by name and kind, or refused."""

from typing import Any

import tensorflow_datasets as tfds

from train.errors import BadInput

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
    listed = f"{builder.name} has the features {', '.join(features)}"

    if key is not None:
        if key not in texts:
            raise BadInput(
                f"config.data.text_key={key!r} is not a text: {listed}; of text: "
                f"{', '.join(texts) or 'none'}"
            )
        return key

    if not texts:
        raise BadInput(f"config.data.name: {listed}, none of them text: a set of texts is needed")
    if len(texts) == 1:
        return texts[0]

    for name in _TEXT_KEYS:
        if name in texts:
            return name
    raise BadInput(
        f"{listed}, several of them text: name one of {', '.join(texts)} as config.data.text_key"
    )


def count_classes(builder: Any, key: str) -> int:
    """Returns the number of classes of the feature that holds the label.

    Raises:
      BadInput: the key is not a class label.
    """
    features: dict[str, Any] = dict(builder.info.features)
    label = features.get(key)
    if not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
        raise BadInput(
            f"config.data.label_key={key!r} is not a class label: {builder.name} has the features "
            f"{', '.join(features)}"
        )
    return label.num_classes
