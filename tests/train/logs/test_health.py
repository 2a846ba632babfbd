"""Runs that go wrong without being infinite, and longer runs: what is said of them."""

import numpy as np
import pytest

from tests.helpers.tiny import make_tiny, make_tiny_language
from train.config.border import from_config_dict
from train.logs.health import describe_warnings, find_warnings
from train.logs.metrics import read_metrics
from train.loop import train
from train.optimizer import make_schedule

IMAGES = from_config_dict(make_tiny()).model  # 10 classes
LANGUAGE = from_config_dict(make_tiny_language()).model  # 300 tokens


def find(loss, right=100, first=40, others=60, skipped=0, config=IMAGES):
    """The warnings of a split whose class 0 is met `first` times, and of that loss."""
    label = np.arange(first + others, dtype=np.float32) % 9 + 1
    label[:first] = 0
    scores = {"label": label, "correct": np.arange(first + others) < right}
    return find_warnings(config, {"loss": loss, "skipped_in_a_row": skipped}, scores)


@pytest.mark.parametrize(
    ("loss", "more", "found"),
    [
        (0.1, {}, {}),
        (3.30, {}, {}),  # log(10) + 1 is 3.3026
        (3.31, {}, {"warning/loss_above_guessing": 3.31 - np.log(10)}),
        (1136.0, dict(skipped=1), {}),
        (float("nan"), {}, {}),
        (float("inf"), {}, {}),
        (6.70, dict(config=LANGUAGE), {}),  # log(300) + 1 is 6.7038
        (6.71, dict(config=LANGUAGE), {"warning/loss_above_guessing": 6.71 - np.log(300)}),
        (0.1, dict(right=45), {}),  # the bound is 0.4 + sqrt(0.4 * 0.6 / 100) = 0.44899
        (0.1, dict(right=44), {"warning/accuracy_to_beat": 0.4 + np.sqrt(0.24 / 100)}),
        (0.1, dict(right=1, first=1, others=0), {}),  # one class
    ],
)
def test_what_an_evaluation_finds(loss, more, found):
    assert find(loss, **more) == pytest.approx(found)


def test_a_split_without_classes():
    scores = {"correct": np.zeros(4), "tokens": np.ones(4)}
    assert find_warnings(LANGUAGE, {"loss": 1.0, "skipped_in_a_row": 0}, scores) == {}


def test_what_is_said_at_the_end():
    line = {"val/accuracy": 0.44, **find(1136.0, right=44)}
    loss, accuracy = describe_warnings(IMAGES, line)
    assert "loss at the end, 1136, is more than 1 above log(10) = 2.303" in loss
    assert "accuracy at the end, 44.0%, does not reach 44.9%" in accuracy
    assert all("take a smaller optimizer.learning_rate" in text for text in (loss, accuracy))
    assert describe_warnings(LANGUAGE, {"val/loss": 2.0}) == []


def test_a_run_whose_loss_stands_high(tmp_path, capsys):
    cfg = make_tiny()
    cfg.optimizer.update(learning_rate=10.0, warmup_steps=1)
    cfg.depth.update(layers=1, share=1, solver="euler", adjoint="store")
    train(cfg, tmp_path)
    first, last = (line for line in read_metrics(tmp_path) if "val/loss" in line)
    assert first["warning/loss_above_guessing"] > 1 and last["warning/loss_above_guessing"] > 1
    told = capsys.readouterr().err
    assert f"warning: {tmp_path}: the training loss at the end" in told
    train(cfg, tmp_path)  # which tests it again
    assert capsys.readouterr().err == told

    cfg.train_steps = 8
    train(cfg, tmp_path)
    told = capsys.readouterr().err
    was, now = (float(make_schedule(from_config_dict(cfg).optimizer, n)(6)) for n in (6, 8))
    assert was == pytest.approx(0, abs=1e-6) and now > 1
    assert "config.train_steps was 6 and is 8" in told
    assert f"at step 6, where it was {was:.3g}, it is {now:.3g} now" in told
    assert told.count("config.train_steps was") == 1
    assert {line["step"]: line for line in read_metrics(tmp_path)}[6] == last
