"""What runs learn: one module per task, all with the same protocol."""

from collections.abc import Callable
from typing import Any

from train.config.run import RunConfig, add_task
from train.config.tables import METRICS, SIGNS, TASK_CLASSES
from train.data.split import Split
from train.tasks.checks import check_better, check_like, check_task
from train.tasks.images import ImageTask
from train.tasks.language import LanguageTask
from train.tasks.measured import Measured
from train.tasks.sentences import SentenceTask
from train.tasks.task import Task

# Each task asks more of its split than the protocol `Split` promises. `load_splits` chooses the
# kind of a split by the same config.task, which no type can say.
TASK_CLASSES.define("images")(ImageTask)
TASK_CLASSES.define("language")(LanguageTask)
TASK_CLASSES.define("sentences")(SentenceTask)


def make_task(config: RunConfig, data: Split) -> Task:
    """Returns the task of a run, with the metrics that its config adds.

    Args:
      config: the run's config.
      data: any split of the run's data: a task reads only what all of them share.

    Raises:
      BadInput: the data do not fit the model.
    """
    task: Any = TASK_CLASSES[config.task](config, data)
    if config.eval.metrics:
        task = Measured(task, config.eval.metrics)
    return task


def register(name: str, task: Any = None, *, like: str) -> Any:
    """Adds a task under a name, a value of config.task: as a decorator, or at once.

        @register("brightness", like="images")
        class Brightness(ImageTask): ...

    Args:
      task: a class that meets `Task` in train/tasks/task.py, made of the RunConfig and a split.
        None: the decorated class.
      like: the task whose model, group `data` of the config and data sets it shares.

    Raises:
      BadInput: the name is taken, there is no task `like`, or the class lacks a part of `Task`.
    """
    check_like(like)

    def add(task: Callable[..., Task]) -> Callable[..., Task]:
        check_task(name, task)
        TASK_CLASSES.register(name, task)
        add_task(name, like)
        return task

    return add if task is None else add(task)


def register_metric(name: str, score: Any = None, *, better: str) -> Any:
    """Adds a metric under a name, for config.eval.metrics: as a decorator, or at once.

    It appears as val/NAME and test/NAME, the mean over a split, and its scores of the test split's
    examples in test_scores.npz; config.checkpoint.best takes 'val/NAME'.

    Args:
      name: of the metric.
      score: (logits, batch) -> [B], for the arrays of an evaluation batch; jitted. None: the
        decorated function.
      better: 'higher' or 'lower'.

    Raises:
      BadInput: the name is taken, or `better` is neither.
    """
    check_better(name, better)

    def add(score: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        METRICS.register(name, score)
        SIGNS[name] = 1 if better == "higher" else -1
        return score

    return add if score is None else add(score)
