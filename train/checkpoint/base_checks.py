"""Whether adapters can be trained, and of which weights."""

from typing import Any

from train.checkpoint.initial_plan import is_workdir
from train.checkpoint.metadata import Metadata
from train.checkpoint.restore import verified_config
from train.checkpoint.workdir import read_tokenizer
from train.config.run import RunConfig
from train.data.text.tokenizer import Tokenizer
from train.devices.processes import is_primary
from train.errors import BadInput, warn


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


def check_no_loop(path: str) -> None:
    """Refuses a base that is a run of adapters of itself, be it by way of others."""
    found, place = [], path
    while is_workdir(place):
        run = verified_config(place)
        if run.lora.rank is None or run.init.path is None:
            return

        found.append(place)
        place = run.init.path
        if place in found:
            raise BadInput(
                f"config.init.path={path}: it is the run's own folder: take another folder as "
                "--workdir"
                if found == [path]
                else f"config.init.path={path}: these runs adapt each other: {', '.join(found)}; "
                "give the path of weights that are there without them"
            )


def check_tokenizer(config: RunConfig, base: Any, data: Any) -> None:
    """Refuses adapters, on text, of a run that was trained on other tokens.

    Args:
      config: of the run.
      base: the weights that adapters are trained of; None without any.
      data: one of its splits.
    """
    tokenizer: Tokenizer | None = getattr(data, "tokenizer", None)
    path = config.init.path
    if base is None or not base.is_run or path is None or tokenizer is None:
        return

    # Weights that are adapted twice keep their first run's tokens.
    of_base = read_tokenizer(path)
    if of_base is not None and of_base.to_json() != tokenizer.to_json():
        raise BadInput(
            f"config.init.path={path} was trained on the tokens of another tokeniser: give it to "
            f"this run, too, by config.data.tokenizer={path}/tokenizer.json"
        )
