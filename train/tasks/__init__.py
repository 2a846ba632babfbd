"""What runs learn: one module a task, all of them behind the same protocol."""

from typing import Any

from train.config.run import RunConfig
from train.tasks.images import ImageTask
from train.tasks.language import LanguageTask
from train.tasks.sentences import SentenceTask
from train.tasks.task import Task

_TASKS = {"images": ImageTask, "language": LanguageTask, "sentences": SentenceTask}


def make_task(config: RunConfig, data: Any) -> Task:
    """Returns the task of a run.

    Args:
      config: of the run.
      data: one of its splits; what the task needs of it is the same in all.

    Raises:
      BadInput: data that do not fit the model.
    """
    return _TASKS[config.task](config, data)
