"""What is refused of weights that a run is to begin with, to adapt, or to freeze."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from odeformer import lora
from train.checkpoint.metadata import Metadata
from train.checkpoint.parameters import parameter_names
from train.checkpoint.restore import verified_config
from train.checkpoint.workdir import is_workdir
from train.config.patterns import check_matching, check_trained, factors
from train.config.run import TASKS, RunConfig, base_task
from train.devices.mesh import parameter_shapes
from train.devices.processes import is_primary
from train.errors import BadInput, warn

Shape = tuple[int, ...]


@contextlib.contextmanager
def reading_pretrained(path: str) -> Iterator[None]:
    """Reports as bad input what keeps a pretrained model from being read."""
    try:
        yield
    except BadInput:
        raise
    except (ValueError, ImportError) as error:
        raise BadInput(
            f"config.init.path={path} is neither a workdir nor a model that is read: {error}"
        ) from error


def check_task(path: str, theirs: str, ours: str) -> None:
    """Refuses a run of another task."""
    if base_task(theirs) != base_task(ours):
        raise BadInput(
            f"config.init.path={path} holds a run of task {theirs!r}, and config.task is {ours!r}: "
            "give a run of the same task"
        )


def check_kind(path: str, found: Any, config: RunConfig) -> None:
    """Refuses a pretrained model of another kind than the run's."""
    wanted = TASKS[config.task].model
    if not isinstance(found, wanted):
        raise BadInput(
            f"config.init.path={path} holds the model of a {type(found).__name__}, and a run of "
            f"config.task={config.task!r} trains that of a {wanted.__name__}: give one of this kind"
        )


def check_has_checkpoint(path: str, steps: Sequence[int]) -> None:
    """Refuses a workdir without a checkpoint."""
    if not steps:
        raise BadInput(f"config.init.path={path} holds no checkpoint: train that run first")


def check_tokenizer(config: RunConfig, theirs: Any, ours: Any) -> None:
    """Refuses embeddings of the tokens of another tokeniser, or of one that is not known."""
    path = config.init.path

    # Of weights that are adapted nothing can be left out.
    leave_out = ", or leave the embeddings out by config.init.exclude=embedding"
    otherwise = leave_out if config.lora.rank is None else ""

    if theirs is not None and theirs.to_json() != ours.to_json():
        raise BadInput(
            f"config.init.path={path} was trained on the tokens of another tokeniser: give it to "
            f"this run, too, by config.data.tokenizer={path}/tokenizer.json{otherwise}"
        )

    # One that the config names is its author's word for it.
    if theirs is None and getattr(config.data, "tokenizer", None) == "bpe":
        raise BadInput(
            f"config.init.path={path} has no tokenizer.json, and config.data.tokenizer='bpe' makes "
            f"another one of the data: give the model's own, as config.data.tokenizer=FILE"
            f"{otherwise}"
        )


def check_shapes(
    path: str, unfit: Mapping[str, tuple[Shape | None, Shape]], is_adapted: bool = False
) -> None:
    """Refuses parameters whose shapes differ: {name: (shape there, shape here)}.

    Args:
      path: of the weights.
      unfit: the parameters.
      is_adapted: whether adapters of them are to be trained, so that none can be left out.
    """
    if not unfit:
        return

    told = [
        f"{name} is {'absent' if theirs is None else list(theirs)} there and {list(ours)} here"
        for name, (theirs, ours) in unfit.items()
    ]
    more = f" and {len(told) - 3} more" if len(told) > 3 else ""
    of_text = "position_embedding/embedding" in unfit
    hint = " (positions of texts are no grid, and are not resampled)" * of_text
    leave_out = "" if is_adapted else ", or leave them out by config.init.exclude"
    raise BadInput(
        f"config.init.path={path}: weights that do not fit the model: {'; '.join(told[:3])}{more}"
        f"{hint}; give the sizes that they were trained with{leave_out}"
    )


def check_loaded(path: str, names: Sequence[str]) -> None:
    """Refuses to begin with weights none of which would be used."""
    if not names:
        raise BadInput(
            f"config.init.path={path}: nothing of it would be loaded: name more in "
            "config.init.include, less in config.init.exclude, or leave config.init.path out"
        )


def warn_of_classes(path: str, theirs: Any, ours: Any, is_adapted: bool = False) -> None:
    """Warns of a head that is taken as it is, of as many, but other classes.

    Args:
      path: of the weights.
      theirs: the inputs of the run that they are of.
      ours: those of the run that takes them.
      is_adapted: whether adapters of them are to be trained, for which init.exclude is refused.
    """
    was, now = (getattr(inputs, "classes", None) for inputs in (theirs, ours))
    if was is None or now is None or was == now:
        return

    advice = "it is trained from there" if is_adapted else "config.init.exclude=head begins with"
    advice += "" if is_adapted else " a new one"
    warn(
        f"the head of {path} is taken as it is, whose classes were {_listed(was)} and are "
        f"{_listed(now)}: {advice}"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def check_base(metadata: Metadata, base: Any, config: RunConfig, where: Any) -> None:
    """Refuses a base other than the one that a checkpoint's adapters adapt.

    Args:
      base: as of now; None without one.
      where: the run's workdir, for the message.
    """
    if base is not None and metadata.base != base.digest:
        raise BadInput(
            f"{where}: config.init.path={config.init.path} does not hold the weights that the "
            f"adapters of step {metadata.position.step} were trained of: give the path of those"
        )


def warn_of_new_head(config: RunConfig, base: Any) -> None:
    """Warns where a classifier starts with a new head instead of that of the weights it adapts."""
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


def check_adapters(config: RunConfig) -> None:
    """Refuses adapters that the model has no kernels for, or whose rank is too large."""
    options = config.lora
    if options.rank is None:
        return

    try:
        lora.kernels(parameter_shapes(config.model), options.rank, options.targets)
    except ValueError as error:
        raise BadInput(f"config.lora: {error}") from error


def check_optimizer_names(config: RunConfig) -> None:
    """Refuses names of parameters, to freeze or to train at another rate, that fit none.

    Raises:
      BadInput: a pattern that matches no parameter, or parameters to freeze that are all; adapters
        that the model cannot have.
    """
    check_adapters(config)
    options = config.optimizer
    if options.freeze or options.rate_factors:
        names = parameter_names(config)
        check_matching("optimizer.freeze", options.freeze, names)
        trained = check_trained(options.freeze, names)
        check_matching("optimizer.rate_factors", factors(options.rate_factors), trained, " trained")
