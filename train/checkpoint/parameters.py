"""The parameters of a model: their number, their names, and a table; nothing is allocated."""

import functools
import math
from collections import Counter
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec
from rich.table import Table

from odeformer import ModelConfig, sharding
from train.adapters import init_trained
from train.checkpoint.checksums import leaf_name
from train.config.run import RunConfig
from train.devices.mesh import parameter_shapes


def count_parameters(params: Any) -> int:
    """Returns the number of parameters in a tree of arrays."""
    return int(sum(np.prod(leaf.shape, dtype=np.int64) for leaf in jax.tree.leaves(params)))


def parameter_names(config: RunConfig) -> list[str]:
    """Returns the names of a run's parameters: of adapters and a head, where it trains these."""
    shapes = parameter_shapes(config.model)
    if config.lora.rank is not None:
        shapes = jax.eval_shape(functools.partial(init_trained, config, config.seed), shapes)
    return [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]


def parameter_table(config: ModelConfig) -> Table:
    """Returns a table of a model's parameters, and their totals by the first part of the name."""
    shapes = parameter_shapes(config)

    axes = jax.tree.leaves(
        sharding.parameter_axes(shapes), is_leaf=lambda spec: isinstance(spec, PartitionSpec)
    )

    table = Table(title="parameters", caption="axes: what a mesh may split; -: never split")
    for name in ("name", "shape", "dtype", "entries", "bytes", "axes"):
        table.add_column(name, justify="right" if name in ("entries", "bytes") else "left")

    # By the first part of the name, in the order of the parameters.
    entries, sizes = Counter(), Counter()
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    for (path, leaf), spec in zip(leaves, axes, strict=True):
        name, count = leaf_name(path), math.prod(leaf.shape)
        size = count * leaf.dtype.itemsize
        entries[name.partition("/")[0]] += count
        sizes[name.partition("/")[0]] += size

        shape = " x ".join(map(str, leaf.shape))
        split = " ".join(axis or "-" for axis in spec)
        row = [name, shape, str(leaf.dtype), f"{count:,}", f"{size:,}", split]
        table.add_row(*row)

    table.add_section()
    totals = {name: (entries[name], sizes[name]) for name in entries}
    totals["all"] = (entries.total(), sizes.total())
    for name, (count, size) in totals.items():
        row = [name, "", "", f"{count:,}", f"{size:,}", ""]
        table.add_row(*row)

    return table
