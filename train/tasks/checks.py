"""Whether a data set fits a model."""

from typing import Any

from train.errors import BadInput


def check_equal(name: str, what: str, of_data: Any, of_model: Any, keys: str) -> None:
    """Raises BadInput where a data set and the model differ.

    Args:
      name: of the data set.
      what: what is compared, in words.
      of_data: its value in the data set.
      of_model: its value in the model.
      keys: the keys of the config to change, in words.
    """
    if of_data != of_model:
        raise BadInput(
            f"the {what} of data set {name!r} is {of_data}, the model's is {of_model}: change "
            f"{keys}"
        )
