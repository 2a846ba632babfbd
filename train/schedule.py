"""What is due after a training step."""

from typing import NamedTuple

from train.checkpoint.saver import Saver
from train.config.run import RunConfig


class Due(NamedTuple):
    """What follows a step.

    Attributes:
      last: whether it is the run's last step.
      stop: whether the run stops here before its end, as a signal asked for.
      evaluate: whether the validation split is scored.
      save: whether the state is saved.
    """

    last: bool
    stop: bool
    evaluate: bool
    save: bool


class Schedule:
    """Says what is due, step by step."""

    def __init__(self, config: RunConfig, saver: Saver):
        self._config, self._saver = config, saver

    def due(self, step: int, stop: bool) -> Due:
        """Returns what follows this step.

        Args:
          step: the step that was dispatched, from 1.
          stop: whether the run was asked to stop.
        """
        last = step == self._config.train_steps
        evaluate = last or step % self._config.eval.every_steps == 0

        # The saver retries a save that failed, so one may be due at any step.
        save = last or stop or self._saver.is_due(step)

        # At the last step there is nothing left to stop: the run ends as any other.
        return Due(last=last, stop=stop and not last, evaluate=evaluate, save=save)
