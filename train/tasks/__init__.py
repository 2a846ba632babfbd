"""What runs learn: one module per task, all with the same protocol."""

from collections.abc import Callable
from typing import Any

from train.config.run import RunConfig
from train.data.split import Split
from train.tasks.images import ImageTask
from train.tasks.language import LanguageTask
from train.tasks.sentences import SentenceTask
from train.tasks.task import Task

# Each task asks more of its split than the protocol `Split` promises. `load_splits` chooses the
# kind of a split by the same config.task, which no type can say.
_TASKS: dict[str, Callable[[RunConfig, Any], Task]] = {
    "images": ImageTask,
    "language": LanguageTask,
    "sentences": SentenceTask,
}


def make_task(config: RunConfig, data: Split) -> Task:
    """Returns the task of a run.

    Args:
      config: the run's config.
      data: any split of the run's data: a task reads only what all of them share.

    Raises:
      BadInput: the data do not fit the model.
    """
    return _TASKS[config.task](config, data)
