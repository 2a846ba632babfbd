"""Warnings about a run that learns nothing although its loss is finite.

Both rules are functions of one evaluation and of its step, so that an interrupted run warns as an
uninterrupted one does:

    training loss > log(K) + 1                             K: classes, or tokens of the vocabulary
    validation accuracy <= p + sqrt(p (1 - p) / N)         p: share of the most frequent class in it
                                                           N: its examples

log(K) is the loss of a uniform guess, about that of an untrained model.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from odeformer import ModelConfig, example_sizes
from train.tasks.task import mean

# Far above what the choice of one batch adds to the loss.
MARGIN_NATS = 1.0

LOSS, ACCURACY = "warning/loss_above_guessing", "warning/accuracy_to_beat"


def find_warnings(
    config: ModelConfig, metrics: Mapping[str, Any], scores: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Returns what seems wrong at an evaluation, as metrics; empty if nothing does.

    Args:
      metrics: of the step before the evaluation, with 'loss' (nats).
      scores: of each example of the validation split.

    Returns:
      warning/loss_above_guessing, in nats, and warning/accuracy_to_beat, a fraction, each if its
      rule holds.
    """
    warnings = {}

    above = float(metrics["loss"]) - math.log(example_sizes(config).outputs)
    # The loss of a skipped batch may be anything, and the guard reports it.
    if above > MARGIN_NATS and math.isfinite(above) and not int(metrics["skipped_in_a_row"]):
        warnings[LOSS] = above

    # Language models have no labels among the scores.
    if "label" in scores:
        share = np.bincount(scores["label"].astype(np.int64)).max() / len(scores["label"])
        bound = share + math.sqrt(share * (1 - share) / len(scores["label"]))
        # Where all examples are of one class no accuracy is above its share.
        if share < 1 and mean(scores["correct"]) <= bound:
            warnings[ACCURACY] = float(bound)

    return warnings


def describe_warnings(config: ModelConfig, line: Mapping[str, Any]) -> list[str]:
    """Returns a text for each warning in a line of metrics.jsonl, that of the last evaluation."""
    texts = []
    choices = example_sizes(config).outputs
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
            f"the run has learnt nothing that shows; {advice}, or train longer"
        )

    return texts
