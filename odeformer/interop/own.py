"""Parameters of any model as one safetensors file, under our own names."""

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from odeformer.interop.weights import find_weights, write_weights


def save_safetensors(variables: Any, path: str | os.PathLike[str]) -> None:
    """Writes a model's variables, of any solver and any terms, to one safetensors file.

    Args:
      variables: of `model.init`, or restored ones. A tensor's name is its path, as
        'params/norm/scale'.
      path: of the file.

    Raises:
      ImportError: the package safetensors is not installed.
    """
    flat = traverse_util.flatten_dict(variables, sep="/")
    tensors = {name: np.ascontiguousarray(jax.device_get(leaf)) for name, leaf in flat.items()}
    write_weights(pathlib.Path(path), tensors, {"format": "odeformer"})


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what `save_safetensors` wrote: variables, each array bit for bit.

    Args:
      path: of the file.

    Raises:
      ImportError: the package safetensors is not installed.
      ValueError: a file that is missing, cut off, or no file of safetensors.
    """
    weights = find_weights([pathlib.Path(path)])
    flat = {name: jnp.asarray(weights.read(name)) for name in weights.shapes}
    return traverse_util.unflatten_dict(flat, sep="/")
