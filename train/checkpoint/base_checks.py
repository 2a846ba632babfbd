"""Whether adapters can be trained, and of which weights."""

from typing import Any

import jax

from odeformer import lora
from train.adapters import split_head
from train.checkpoint.checksums import leaf_name
from train.checkpoint.metadata import Metadata
from train.checkpoint.parameters import parameter_shapes
from train.checkpoint.workdir import read_tokenizer
from train.config.run import RunConfig
from train.data.text.tokenizer import Tokenizer
from train.devices.processes import is_primary
from train.errors import BadInput, warn


def check_adapters(config: RunConfig) -> None:
    """Refuses adapters that the model has no kernels for, or whose rank is too large."""
    options = config.lora
    if options.rank is None:
        return

    try:
        lora.kernels(parameter_shapes(config.model), options.rank, options.targets)
    except ValueError as error:
        raise BadInput(f"config.lora: {error}") from error


def check_base(metadata: Metadata, base: Any, config: RunConfig, where: Any) -> None:
    """Refuses another base than the one that a checkpoint's adapters were trained of.

    Args:
      metadata: of the checkpoint.
      base: as of now; None without one.
      config: of the run.
      where: the run's workdir, for the message.
    """
    if base is not None and metadata.base != base.digest:
        raise BadInput(
            f"{where}: config.init.path={config.init.path} does not hold the weights that the "
            f"adapters of step {metadata.position.step} were trained of: give the path of those"
        )


def warn_of_new_head(config: RunConfig, base: Any) -> None:
    """Warns where a classifier begins with another head than that of the weights that it adapts."""
    classes = getattr(config.model, "classes", None)
    if base is not None and base.head is None and classes is not None and is_primary():
        warn(
            f"config.init.path={config.init.path} has no head of {classes} classes: this run "
            "begins with a new one"
        )


def check_no_loop(path: str, of_base: RunConfig) -> None:
    """Refuses a base that is a run of adapters of itself."""
    if of_base.lora.rank is not None and of_base.init.path == path:
        raise BadInput("it is the run's own folder: take another folder as --workdir")


def check_tokenizer(config: RunConfig, data: Any) -> None:
    """Refuses adapters, on text, of a base that was trained on other tokens.

    Args:
      config: of the run.
      data: one of its splits.
    """
    tokenizer: Tokenizer | None = getattr(data, "tokenizer", None)
    path = config.init.path
    if config.lora.rank is None or path is None or tokenizer is None:
        return

    # Weights that are adapted twice keep their first run's tokens.
    of_base = read_tokenizer(path)
    if of_base is not None and of_base.to_json() != tokenizer.to_json():
        raise BadInput(
            f"config.init.path={path} was trained on the tokens of another tokeniser: give it to "
            f"this run, too, by config.data.tokenizer={path}/tokenizer.json"
        )


def check_form(config: RunConfig, params: Any) -> None:
    """Refuses weights of another form than the model's, its head excepted."""
    _, shapes = split_head(config, parameter_shapes(config.model))
    found, wanted = form(params), form(shapes)
    for name in wanted | found:
        if found.get(name) != wanted.get(name):
            raise BadInput(
                f"config.init.path={config.init.path} does not fit the model: {name} is "
                f"{found.get(name, 'absent')} there and {wanted.get(name, 'absent')} in the model; "
                "give the run the sizes of that model (config.model, config.depth)"
            )


def form(tree: Any) -> dict[str, str]:
    """Returns {name: dtype and shape} of a tree of arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {leaf_name(path): f"{leaf.dtype} {list(leaf.shape)}" for path, leaf in leaves}
