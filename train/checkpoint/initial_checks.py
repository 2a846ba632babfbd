"""What is refused of weights that a run is to begin with."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from train.config.run import TASKS, RunConfig, base_task
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


def check_tokenizer(path: str, theirs: Any, ours: Any) -> None:
    """Refuses embeddings of the tokens of another tokeniser."""
    if theirs is not None and theirs.to_json() != ours.to_json():
        raise BadInput(
            f"config.init.path={path}: its tokeniser is not the one of this run, so that its "
            f"embeddings are those of other tokens: give config.data.tokenizer={path}/"
            "tokenizer.json, or leave them out by config.init.exclude=embedding"
        )


def check_shapes(path: str, unfit: Mapping[str, tuple[Shape | None, Shape]]) -> None:
    """Refuses parameters whose shapes differ: {name: (shape there, shape here)}."""
    if not unfit:
        return

    told = [
        f"{name} is {'absent' if theirs is None else list(theirs)} there and {list(ours)} here"
        for name, (theirs, ours) in unfit.items()
    ]
    more = f" and {len(told) - 3} more" if len(told) > 3 else ""
    of_text = "position_embedding/embedding" in unfit
    hint = " (positions of texts are no grid, and are not resampled)" * of_text
    raise BadInput(
        f"config.init.path={path}: weights that do not fit the model: {'; '.join(told[:3])}{more}"
        f"{hint}; give the sizes that they were trained with, or leave them out by "
        "config.init.exclude"
    )


def check_loaded(path: str, names: Sequence[str]) -> None:
    """Refuses to begin with weights none of which would be used."""
    if not names:
        raise BadInput(
            f"config.init.path={path}: nothing of it would be loaded: name more in "
            "config.init.include, less in config.init.exclude, or leave config.init.path out"
        )


def warn_of_classes(path: str, theirs: Any, ours: Any) -> None:
    """Warns of a head that is taken as it is, of as many, but other classes."""
    was, now = (getattr(inputs, "classes", None) for inputs in (theirs, ours))
    if was is None or now is None or was == now:
        return

    warn(
        f"the head of {path} is taken as it is, whose classes were {_listed(was)} and are "
        f"{_listed(now)}: config.init.exclude=head begins with a new one"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
