"""Runs that go wrong without being infinite: what is said of one that has learnt nothing.

Both rules are functions of one evaluation and of its step, so a run that was interrupted says what
one that was not does:

    training loss > log(K) + 1                             K: classes, or tokens of the vocabulary
    validation accuracy <= p + sqrt(p (1 - p) / N)         p: share of the most frequent class in it
                                                           N: its examples

log(K) is the loss of a uniform guess, about that of an untrained model, and a nat is far above what
one batch adds to it. The second rule is for classes alone: it needs labels among the scores.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from odeformer.models.registry import ModelConfig
from train.tasks.task import mean

MARGIN_NATS = 1.0
LOSS, ACCURACY = "warning/loss_above_guessing", "warning/accuracy_to_beat"


def find_warnings(
    config: ModelConfig, metrics: Mapping[str, Any], scores: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Returns what goes wrong at an evaluation, as metrics; nothing of a run in order.

    Args:
      config: of the model.
      metrics: of the step that was evaluated behind, 'loss' (nats) among them.
      scores: of each example of the validation split.

    Returns:
      warning/loss_above_guessing, in nats, and warning/accuracy_to_beat, a fraction, each where its
      rule says so.
    """
    found = {}
    above = float(metrics["loss"]) - math.log(_choices(config))
    # The guard reports batches that are skipped, whose loss may be anything.
    if above > MARGIN_NATS and math.isfinite(above) and not int(metrics["skipped_in_a_row"]):
        found[LOSS] = above
    if "label" in scores:
        share = np.bincount(scores["label"].astype(np.int64)).max() / len(scores["label"])
        bound = share + math.sqrt(share * (1 - share) / len(scores["label"]))
        if share < 1 and mean(scores["correct"]) <= bound:
            found[ACCURACY] = float(bound)
    return found


def describe_warnings(config: ModelConfig, line: Mapping[str, Any]) -> list[str]:
    """Returns a text for each warning in the metrics of the last evaluation.

    Args:
      config: of the model.
      line: of metrics.jsonl.
    """
    texts = []
    choices = _choices(config)
    advice = "take a smaller optimizer.learning_rate or a longer optimizer.warmup_steps"
    if LOSS in line:
        guess = math.log(choices)
        texts.append(
            f"the training loss at the end, {line[LOSS] + guess:.4g}, is more than "
            f"{MARGIN_NATS:g} above log({choices}) = {guess:.4g}, that of a uniform guess: {advice}"
        )
    if ACCURACY in line:
        texts.append(
            f"the validation accuracy at the end, {line['val/accuracy']:.1%}, does not reach "
            f"{line[ACCURACY]:.1%}, one standard error above the share of the most frequent class: "
            f"nothing is learnt that shows; {advice}, or train longer"
        )
    return texts


def _choices(config: ModelConfig) -> int:
    """The classes, or for a language model the tokens, that a guess is made among."""
    found: Any = config
    return found.classes if hasattr(found, "classes") else found.vocabulary
