"""What the config.json of several families say in the same words."""

from typing import Any

from odeformer.errors import check_name

Raw = dict[str, Any]

# Their names of activations, and ours.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
WRITTEN = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "silu": "silu"}


def activation(raw: Raw, key: str, default: str) -> str:
    """Returns our name of the activation that a config.json names.

    Raises:
      ValueError: an activation that the MLP does not have.
    """
    name = raw.get(key, default)
    check_name(f"{key} in config.json", name, ACTIVATIONS)
    return ACTIVATIONS[name]


def labels(raw: Raw) -> int:
    """Returns the number of classes that a config.json names."""
    return raw.get("num_labels", len(raw.get("id2label") or {0: "", 1: ""}))


def written_labels(classes: int) -> Raw:
    """Returns the names of classes that a config.json holds, as no model knows its own."""
    names = {str(label): f"LABEL_{label}" for label in range(classes)}
    return {"id2label": names, "label2id": {name: int(label) for label, name in names.items()}}
