"""Whether a set of tensorflow-datasets has the features that a config names, or that are needed."""

from collections.abc import Collection, Sequence
from typing import Any

import tensorflow_datasets as tfds

from train.errors import BadInput


def check_text_key(name: str, features: Collection[str], texts: Sequence[str], key: str) -> None:
    """Refuses a key that is not one of the set's texts.

    Args:
      name: of the set.
      features: names of all its features.
      texts: names of those that are texts.
      key: that the config names.
    """
    if key not in texts:
        raise BadInput(
            f"config.data.text_key={key!r} is not a text: {_listed(name, features)}; of text: "
            f"{', '.join(texts) or 'none'}"
        )


def check_one_text(
    name: str, features: Collection[str], texts: Sequence[str], usual: Sequence[str]
) -> None:
    """Refuses a set without a text, or with several of them and none under a usual name."""
    if not texts:
        raise BadInput(
            f"config.data.name: {_listed(name, features)}, none of them text: a set of texts is "
            "needed"
        )

    if len(texts) > 1 and not set(texts) & set(usual):
        raise BadInput(
            f"{_listed(name, features)}, several of them text: name one of {', '.join(texts)} as "
            "config.data.text_key"
        )


def check_label_key(name: str, features: dict[str, Any], key: str) -> None:
    """Refuses a key that is not a class label of the set."""
    label = features.get(key)
    if not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
        raise BadInput(
            f"config.data.label_key={key!r} is not a class label: {_listed(name, features)}"
        )


def _listed(name: str, features: Collection[str]) -> str:
    return f"{name} has the features {', '.join(features)}"
