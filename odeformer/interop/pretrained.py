"""Pretrained transformers in the layout of the library transformers, read and written."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from odeformer.errors import check_kind, check_name
from odeformer.interop.arrays import Rules, make_array, shapes_of, shardings_of
from odeformer.interop.checks import check_tensors
from odeformer.interop.families import Reading, family_of, read_family
from odeformer.interop.hub import find_folder
from odeformer.interop.layout import LAYERS, Layout, tensors_of
from odeformer.interop.positions import resample_positions
from odeformer.interop.weights import FILE, find_weights, read_json, weight_files, write_weights
from odeformer.models.registry import ModelConfig, make_model
from odeformer.models.vit import ViTConfig
from odeformer.transformer.config import DepthConfig
from odeformer.transformer.lora_checks import check_merged

CONFIG = "config.json"
DTYPES = ("float32", "bfloat16")


def load_config(
    folder: str | os.PathLike[str],
    *,
    image_size: int | tuple[int, int] | None = None,
    depth: DepthConfig | Mapping[str, Any] | None = None,
    dtype: str = "float32",
) -> ModelConfig:
    """Reads the config of the model that `load_pretrained` loads, without reading weights.

    Args:
      folder: as for `load_pretrained`, like all arguments.
      image_size: height and width of the images.
      depth: another way to integrate the weights.
      dtype: dtype of the matrix products.

    Returns:
      The config of the model that `load_pretrained` returns.

    Raises:
      ImportError, ValueError: as `load_pretrained` does, except for what concerns the weights.
    """
    check_name("dtype", dtype, DTYPES)
    reading = read_family(read_json(find_folder(folder) / CONFIG), depth, dtype)
    return _of_size(reading.config, image_size)


def load_pretrained(
    folder: str | os.PathLike[str],
    *,
    image_size: int | tuple[int, int] | None = None,
    depth: DepthConfig | Mapping[str, Any] | None = None,
    dtype: str = "float32",
    param_dtype: str = "float32",
    mesh: Mesh | None = None,
    rules: Rules | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a pretrained transformer, whose layers are the steps of a solve.

        y += attention(norm(y)), then y += mlp(norm(y)):  lie_trotter, one step per layer

    Dropout is off, whatever config.json says: `dataclasses.replace(model.config, dropout=0.1)` is
    the config of a model for fine-tuning.

    Args:
      folder: with config.json and model.safetensors, or the shards of
        model.safetensors.index.json; or a name on the Hugging Face Hub, which is downloaded.
      image_size: height and width of the images, if not those of the training; learned positions
        are resampled as the model's own library does.
      depth: another way to integrate the same weights, a DepthConfig or some of its fields such as
        {'solver': 'euler'}; None: as they were trained.
      dtype: of the matrix products, 'float32' or 'bfloat16'.
      param_dtype: of the parameters, 'float32' or 'bfloat16'.
      mesh: devices over which the parameters are split; each part is created on its device. None:
        all lie on the default device.
      rules: the mesh's axes for names of axes, such as {'width': 'fsdp', 'heads': 'tensor'}; see
        `odeformer.sharding`. What is not named is replicated.

    Returns:
      (model, variables): a `ViT` or an `LM`, for `model.apply(variables, ...)`. What a ViT's
      images need first: `load_preparation`.

    Raises:
      ImportError: the package safetensors is not installed, or for a name huggingface_hub.
      ValueError: no such folder or name; an architecture, a value or tensors that are not
        supported; weights as a pickle; a file that is cut off; a mesh that does not divide an axis
        of a parameter, or rules that do not fit the mesh.
    """
    check_name("dtype", dtype, DTYPES)
    check_name("param_dtype", param_dtype, DTYPES)

    path = find_folder(folder)
    reading = read_family(read_json(path / CONFIG), depth, dtype)
    layout, layers = reading.layout, reading.config.depth.layers
    shardings = shardings_of(shapes_of(layout, layers), mesh, rules)

    weights = find_weights(weight_files(path))
    names = {name: reading.stored_as(name) for name in weights.shapes}
    stored = {ours: name for name, ours in names.items() if ours is not None}
    shapes = {ours: weights.shapes[name] for ours, name in stored.items()}
    check_tensors(str(path), tensors_of(layout, layers), shapes)

    flat = {
        place: make_array(
            leaf,
            layers if place.startswith(LAYERS) else None,
            dtype=jnp.dtype(param_dtype),
            sharding=shardings[place],
            read=lambda name: weights.read(stored[name]),
        )
        for place, leaf in layout.items()
    }
    sized = _of_size(reading.config, image_size)
    if sized != reading.config and "positions" in flat:
        flat["positions"] = _resampled(flat["positions"], reading, sized)

    return make_model(sized), {"params": traverse_util.unflatten_dict(flat, sep="/")}


def _of_size(config: Any, image_size: int | tuple[int, int] | None) -> Any:
    """The config for images of another size."""
    if image_size is None:
        return config

    check_kind("image_size", config, ViTConfig)
    return dataclasses.replace(config, image_size=image_size)


def _resampled(table: jax.Array, reading: Reading, sized: ViTConfig) -> jax.Array:
    """Learned positions for images of another size, with the sharding that they had."""
    # They are replicated, so any device holds them all.
    places = resample_positions(
        table.addressable_data(0), reading.config.grid, sized.grid, reading.resample
    )
    return jax.make_array_from_callback(places.shape, table.sharding, lambda index: places[index])


def save_pretrained(
    model: nn.Module, variables: Mapping[str, Any], folder: str | os.PathLike[str]
) -> None:
    """Writes a model in the layout of transformers: config.json and model.safetensors.

    Its `from_pretrained(folder)` and our `load_pretrained(folder)` read it. The model knows neither
    the names of its classes, which are written as LABEL_0 and so on, nor the tokens that begin and
    end a text, which are left out.

    Args:
      model: a `ViT` or an `LM` with solver lie_trotter, share 1, one step per layer, terms
        attention and mlp, no time and no centring. A ViT has learned positions, and either a class
        token that the head reads (pool 'token'), or the form of DINOv2: layer scale and pool
        'token_mean', with or without registers, head and gated MLPs. Models of timm are written as
        those of transformers.
      variables: the model's parameters, which are written in their own dtype.
      folder: created if it does not exist; files of these names are overwritten.

    Raises:
      ImportError: the package safetensors is not installed.
      ValueError: a model that does not fit the layout, or variables that are not the model's.
    """
    check_merged(variables)
    config: Any = getattr(model, "config", model)
    family = family_of(config)
    layout, layers = family.layout(config), config.depth.layers

    flat: Any = traverse_util.flatten_dict(variables["params"], sep="/")
    check_tensors(
        "the variables", shapes_of(layout, layers), {name: np.shape(x) for name, x in flat.items()}
    )

    tensors = _disassembled(flat, layout)
    dtypes = sorted({tensor.dtype.name for tensor in tensors.values()})
    raw = family.write(config) | {"dtype": dtypes[-1]}

    path = pathlib.Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    write_weights(path / FILE, tensors, {"format": "pt"})
    (path / CONFIG).write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _disassembled(flat: Mapping[str, Any], layout: Layout) -> dict[str, np.ndarray]:
    """The stored tensors, by name, that our arrays are divided into."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for place, leaf in layout.items():
        array = np.asarray(jax.device_get(flat[place]))
        parts = array if place.startswith(LAYERS) else array[None]
        for layer, part in enumerate(parts):
            for name, tensor in zip(leaf.names, leaf.tensors(part), strict=True):
                found.setdefault(name.format(layer), {})[leaf.part] = tensor

    return {name: _joined(parts) for name, parts in found.items()}


def _joined(parts: Mapping[int, np.ndarray]) -> np.ndarray:
    return np.concatenate([parts[n] for n in sorted(parts)]) if len(parts) > 1 else parts[0]
