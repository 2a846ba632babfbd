"""Whether a data set fits a model, and what is registered a task or a metric."""

import inspect
from collections.abc import Collection
from typing import Any

from odeformer.errors import unknown
from train.config.run import TASKS
from train.errors import BadInput
from train.tasks.task import Task


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


def check_like(like: str) -> None:
    """Refuses a task that is to be like one that does not exist."""
    if like not in TASKS:
        raise BadInput(f"like: {unknown('task', like, TASKS)}")


def check_task(name: str, task: Any) -> None:
    """Refuses a class that lacks a part of a task; of a function nothing is known before."""
    parts = [part for part in vars(Task) if not part.startswith("_")]
    missing = [part for part in parts if not hasattr(task, part)]
    if inspect.isclass(task) and missing:
        raise BadInput(
            f"the task {name!r} lacks {', '.join(missing)}: see Task in train/tasks/task.py, or "
            "inherit from one of the trainer's own"
        )


def check_better(name: str, better: str) -> None:
    """Refuses a metric of which it is not clear when it is better."""
    if better not in ("higher", "lower"):
        raise BadInput(f"the metric {name!r} is better 'higher' or 'lower'; {better!r} was given")


def check_free(names: Collection[str], scores: Collection[str]) -> None:
    """Refuses metrics that have the name of a task's own score."""
    taken = [name for name in names if name in scores]
    if taken:
        raise BadInput(
            f"config.eval.metrics: {taken[0]!r} is a score of the task itself: rename the metric"
        )
