"""What a run's inputs are: recorded in its workdir, or derived from its config alone."""

from typing import Any

from etils import epath

from train.checkpoint.predictor_checks import check_kind, no_inputs
from train.checkpoint.workdir import read_inputs
from train.config.run import RunConfig, base_task
from train.data.images import digits
from train.data.inputs import Inputs, describe_inputs, language_inputs


def inputs_of(path: epath.Path, config: RunConfig) -> Inputs:
    """Returns what a run's inputs.json holds, or what it would hold in a run that has none.

    Raises:
      BadInput: it cannot be read, is that of another task, or is missing where the config alone
        does not say what the inputs are.
    """
    inputs = read_inputs(path) or _derived(path, config)
    check_kind(path, base_task(config.task), inputs)
    return inputs


def _derived(path: epath.Path, config: RunConfig) -> Inputs:
    """The inputs of a run that did not record them, where the config alone says what they are."""
    if base_task(config.task) == "language":
        return language_inputs(config)
    if base_task(config.task) == "images" and config.data.name == "digits":
        data: Any = config.data
        return describe_inputs(config, digits.load(data.fold, data.validation_examples)["train"])

    raise no_inputs(path, config.data.name)
