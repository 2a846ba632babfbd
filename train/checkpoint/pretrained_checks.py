"""What is refused of pretrained models: changes to them, data that do not fit them."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from train.config.run import RunConfig
from train.errors import BadInput

# Of the model: what changes how it is computed, and not what it is.
_COMPUTED = ("model.dtype", "model.attention")
_FIXED = ("depth.layers", "depth.share")


def check_changes(changes: Mapping[str, Any]) -> None:
    """Refuses flags that would change the pretrained model itself."""
    for key in changes:
        is_model = key.startswith("model.") and key not in _COMPUTED
        if is_model or key in _FIXED:
            raise BadInput(
                f"--config.{key} has no effect with --init, whose folder says what the model is: "
                f"leave it out; {', '.join(_COMPUTED)} and the other keys of depth do"
            )


def check_alone(init: str, workdir: str | None, step: Any, confusion: bool) -> None:
    """Refuses flags that belong to a run, next to a pretrained model."""
    for name, value in {"workdir": workdir, "step": step}.items():
        if value is not None:
            raise BadInput(
                f"--{name} belongs to a run, and --init={init} is a pretrained model: leave one "
                "of the two out"
            )
    if confusion:
        raise BadInput("--confusion draws into a run's workdir, which --init has not: leave it out")


def check_task(folder: str, kind: str, task: str) -> None:
    """Refuses a config of another task than the model's."""
    if kind != task:
        raise BadInput(
            f"--init={folder} holds a model of task {kind!r}, and --config one of task {task!r}: "
            f"give a config of data for {kind!r}"
        )


def check_fits(config: RunConfig, data: Any) -> None:
    """Refuses a data set whose images or classes are not the model's."""
    model: Any = config.model
    for what, of_data, of_model in (
        ("images of shape", tuple(data.image_shape), tuple(model.image_shape)),
        ("a number of classes of", data.classes, model.classes),
    ):
        if of_data != of_model:
            raise BadInput(
                f"the data set {config.data.name!r} has {what} {of_data}, the pretrained model "
                f"{of_model}: give the config of a data set that the model was made for"
            )


def check_tokens(folder: pathlib.Path, tokens: int, vocabulary: int) -> None:
    """Refuses a tokeniser of more tokens than the model has embeddings."""
    if tokens > vocabulary:
        raise BadInput(
            f"{folder}/tokenizer.json has {tokens} tokens, and the model {vocabulary}: take both "
            "of the same model"
        )


def no_tokenizer(folder: pathlib.Path) -> BadInput:
    """Returns the error for a model whose tokeniser is not known."""
    return BadInput(
        f"{folder} has no tokenizer.json, and config.data.tokenizer='bpe' would make another one "
        "of the data: give the model's own, as --config.data.tokenizer=FILE"
    )


@contextlib.contextmanager
def reading_pretrained(folder: str) -> Iterator[None]:
    """Reports as bad input a folder that is not read, or a package that is missing."""
    try:
        yield
    except (ImportError, ValueError) as error:
        raise BadInput(f"--init={folder}: {error}") from error
