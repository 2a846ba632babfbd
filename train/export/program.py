"""A model as a program that jax alone runs: the artefact, its weights, a manifest, an example."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from odeformer import ModelConfig, TextConfig, ViTConfig, example_inputs, make_model, solvers
from train.export.checks import (
    any_batch,
    check_attention,
    check_inside,
    check_platforms,
    check_program_packages,
    fixed_program,
)
from train.export.example import EXAMPLE, example

PLATFORMS = ("cpu", "cuda", "tpu")
PLACES = ("inside", "beside")
FORMAT = "odeformer program 1"
MANIFEST, PROGRAM, WEIGHTS, TOKENIZER = (
    *("manifest.json", "program.bin", "weights.npz", "tokenizer.json"),
)


def write_program(
    folder: pathlib.Path,
    config: ModelConfig,
    params: Any,
    data: Mapping[str, Any],
    *,
    tokenizer: str | None = None,
    platforms: Sequence[str] = PLATFORMS,
    weights: str = "inside",
    batch: int | None = None,
) -> None:
    """Writes a model as a program, (weights,) inputs -> logits, that `jax.export` reads.

    Args:
      folder: is made if it is not there.
      config: of the model; a solver with tolerances stays one.
      params: the tree of `model.init(...)['params']`.
      data: how raw inputs become the model's, in the keys of a run's inputs.json, 'task' among
        them; kept in the manifest.
      tokenizer: a tokenizer.json, to be written next to the program.
      platforms: that the program is made for, of PLATFORMS.
      weights: 'inside' the program, or 'beside' it, as its first argument.
      batch: the one batch size that the program takes; None for any.

    Raises:
      BadInput: platforms that do not exist or do not fit the model, weights that are too large to
        lie inside, a program that cannot be made for any batch size, or no flatbuffers.
    """
    check_platforms(platforms, PLATFORMS)
    check_attention(config.attention)
    check_program_packages()
    flat = {name: np.asarray(leaf) for name, leaf in _flat(params).items()}
    if weights == "inside":
        check_inside(sum(array.nbytes for array in flat.values()))

    # 'auto' is what the process's own device has; the program is for others, too.
    if config.attention == "auto":
        config = dataclasses.replace(config, attention="xla")
    exported = export_model(
        config, flat, platforms=platforms, inside=weights == "inside", batch=batch
    )

    folder.mkdir(parents=True, exist_ok=True)
    (folder / PROGRAM).write_bytes(exported.serialize())
    if weights == "beside":
        stored: Any = _storable(flat)
        np.savez(folder / WEIGHTS, **stored)
    if tokenizer is not None:
        (folder / TOKENIZER).write_text(tokenizer, encoding="utf-8")
    (folder / EXAMPLE).write_text(example(data["task"], weights), encoding="utf-8")

    # The last: a folder without it was not written to its end.
    manifest = {
        **_describe(config, exported, batch),
        "weights": _describe_weights(flat) if weights == "beside" else None,
        "data": dict(data),
        "tokenizer": None if tokenizer is None else TOKENIZER,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def export_model(
    config: ModelConfig,
    flat: Mapping[str, np.ndarray],
    *,
    platforms: Sequence[str],
    inside: bool,
    batch: int | None,
) -> Any:
    """Returns the `jax.export.Exported` of a model.

    Args:
      flat: the parameters by path, as 'norm/scale'.
      platforms: that it is lowered for.
      inside: whether the parameters are constants of it, or its first argument, a dict.
      batch: its batch size; None for a symbolic one.
    """
    model = make_model(config)

    def logits(weights: Any, *inputs: jax.Array) -> Any:
        params = flax.traverse_util.unflatten_dict(dict(weights), sep="/")
        return model.apply({"params": params}, *inputs)

    size: Any = export.symbolic_shape("batch")[0] if batch is None else batch
    shapes = [
        jax.ShapeDtypeStruct((size, *one.shape[1:]), one.dtype)
        for one in program_inputs(config).values()
    ]

    constants = {name: jnp.asarray(array) for name, array in flat.items()}
    with any_batch() if batch is None else fixed_program():
        if inside:
            program = jax.jit(lambda *inputs: logits(constants, *inputs))
            return export.export(program, platforms=tuple(platforms))(*shapes)

        abstract = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in constants.items()}
        return export.export(jax.jit(logits), platforms=tuple(platforms))(abstract, *shapes)


def program_inputs(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of a program's inputs for one example, by name."""
    (one,) = example_inputs(config)
    if isinstance(config, ViTConfig):
        return {"images": one}

    # A language model sees earlier tokens alone, so that padding after a text needs no mask.
    masks = (
        {"mask": jax.ShapeDtypeStruct(one.shape, bool)} if isinstance(config, TextConfig) else {}
    )
    return {"tokens": one, **masks}


def _describe(config: ModelConfig, exported: Any, batch: int | None) -> dict[str, Any]:
    """What the manifest says of the program itself."""

    def described(shape: Sequence[Any], dtype: Any) -> dict[str, Any]:
        first: Any = "batch" if batch is None else batch
        return {"shape": [first, *shape[1:]], "dtype": jnp.dtype(dtype).name}

    inputs = {name: described(x.shape, x.dtype) for name, x in program_inputs(config).items()}
    (logits,) = exported.out_avals
    depth = dataclasses.asdict(config.depth) | {"solver": solvers.name_of(config.depth.solver)}
    return {
        "format": FORMAT,
        "program": PROGRAM,
        "jax": jax.__version__,
        "calling_convention": exported.calling_convention_version,
        "platforms": list(exported.platforms),
        "float64": config.dtype == "float64",
        "inputs": inputs,
        "outputs": {"logits": described(logits.shape, logits.dtype)},
        "depth": depth,
    }


def _describe_weights(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    dtypes = {name: array.dtype.name for name, array in flat.items()}
    return {"file": WEIGHTS, "dtypes": dtypes}


def _storable(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of numpy's own dtypes: its files keep the bits of bfloat16 as integers."""
    return {
        name: array.view(np.uint16) if array.dtype == jnp.bfloat16 else array
        for name, array in flat.items()
    }


def _flat(params: Any) -> dict[str, Any]:
    flat: Any = flax.traverse_util.flatten_dict(jax.device_get(params), sep="/")
    return flat
