"""Data: the fixed splits, the order of the batches, augmentation."""

import collections
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from tests.helpers.checkout import ROOT
from train.config.border import from_config_dict
from train.data.pipeline import BatchOrder, Position, eval_batch_size, eval_batches, train_batches
from train.data.sources import load_splits
from train.errors import BadInput


@pytest.fixture(scope="module")
def digits():
    return load()


def load(**changes):
    """The splits of the digits' config with changes of its data."""
    cfg = common.get_digits(layers=1)
    cfg.data.update(changes)
    return load_splits(from_config_dict(cfg))


def test_digits_splits_are_fixed_disjoint_and_stratified(digits):
    assert {name: len(split) for name, split in digits.items()} == {
        "train": 1257,
        "validation": 180,
        "test": 360,
    }
    pixels = [image.tobytes() for split in digits.values() for image in split.images]
    assert len(set(pixels)) == 1797
    for split in digits.values():
        shares = np.bincount(split.labels, minlength=10) / len(split)
        assert shares.min() > 0.085 and shares.max() < 0.115
    assert digits["test"].labels[:8].tolist() == load()["test"].labels[:8].tolist()


def test_standardised_pixels(digits):
    train = digits["train"]
    images = train.standardise(train.to_unit(jnp.asarray(train.images)))
    np.testing.assert_allclose([images.mean(), images.std()], [0.0, 1.0], atol=1e-4)


def test_folds_test_every_image_once():
    folds = [load(fold=fold) for fold in range(5)]
    tested = [image.tobytes() for splits in folds for image in splits["test"].images]
    assert len(tested) == len(set(tested)) == 1797
    for splits in folds:
        assert sum(len(split) for split in splits.values()) == 1797
        assert len(splits["validation"]) == 180
        others = {image.tobytes() for image in splits["train"].images}
        assert not others & {image.tobytes() for image in splits["test"].images}


def test_images_held_out_of_every_fold():
    """They are the validation split of all folds, stratified; no fold trains or tests on them."""
    folds = [load(fold=fold, validation_examples=200) for fold in range(5)]
    held_out = folds[0]["validation"]
    assert len(held_out) == 200 and np.bincount(held_out.labels).min() >= 19
    tested = [image.tobytes() for splits in folds for image in splits["test"].images]
    assert len(tested) == len(set(tested)) == 1597
    assert not set(tested) & {image.tobytes() for image in held_out.images}
    for splits in folds:
        np.testing.assert_array_equal(splits["validation"].images, held_out.images)
        assert len(splits["train"]) == 1597 - len(splits["test"])
        seen = {image.tobytes() for name in ("train", "test") for image in splits[name].images}
        assert len(seen) == 1597 and not seen & {image.tobytes() for image in held_out.images}


def test_moments_are_those_of_the_pixels(digits):
    train = digits["train"]
    np.testing.assert_allclose(train.mean, train.images.mean() / 16, rtol=1e-12)
    np.testing.assert_allclose(train.std, train.images.std() / 16, rtol=1e-12)


def order(rows=None, seed=0, steps=40, repeats=1):
    return BatchOrder(100, 12, steps, seed, rows, repeats)


def test_every_example_once_an_epoch():
    batches = order(steps=50)
    flat = np.concatenate([batches[step][0] for step in range(50)])
    for epoch in range(6):
        assert sorted(flat[100 * epoch : 100 * (epoch + 1)]) == list(range(100))
    assert flat[:100].tolist() != flat[100:200].tolist()


def test_order_is_a_function_of_seed_and_step():
    again = order()
    assert order()[17][0].tolist() == again[17][0].tolist()
    assert order(seed=1)[17][0].tolist() != again[17][0].tolist()
    assert again[17][1].tolist() == [17] * 12  # the draw is the step


def test_the_order_is_numpys_permutation_of_seed_and_epoch():
    """Written by hand, and not to be changed: a run is resumed by a later version, too."""
    permutations = [np.random.default_rng((3, epoch)).permutation(100) for epoch in range(3)]
    flat = np.concatenate([order(seed=3)[step][0] for step in range(20)])
    np.testing.assert_array_equal(flat, np.concatenate(permutations)[:240])
    reshuffled = BatchOrder(100, 100, 1, seed=3, shuffle=2)[0][0]
    np.testing.assert_array_equal(reshuffled, np.random.default_rng((3, 0, 2)).permutation(100))


def test_processes_take_their_rows():
    rows = np.array([0, 1, 2, 7, 8, 11])
    for step in (0, 8, 31):
        for repeats in (1, 3):
            part, whole = order(rows, repeats=repeats)[step], order(repeats=repeats)[step]
            for mine, all_of_it in zip(part, whole, strict=True):
                assert mine.tolist() == all_of_it[rows].tolist()


def test_repeats_are_drawn_apart():
    batches = order(repeats=3)
    pairs = [pair for step in range(25) for pair in zip(*batches[step], strict=True)]
    assert len(set(pairs)) == len(pairs) == 300
    seen = collections.Counter(index for index, _ in pairs)
    assert set(seen.values()) == {3} and len(seen) == 100  # one epoch, each example three times


def test_batches_go_on_where_they_stopped(digits):
    train = digits["train"]
    whole = list(train_batches(train, 32, 10, seed=0))
    rest = list(train_batches(train, 32, 10, seed=0, start=Position(7, 0)))
    assert len(whole) == 10 and len(rest) == 3
    for a, b in zip(whole[7:], rest, strict=True):
        np.testing.assert_array_equal(a["index"], b["index"])
    np.testing.assert_array_equal(whole[0]["image"], train.images[whole[0]["index"]])


@pytest.mark.parametrize(("batch_size", "processes"), [(8, 1), (8, 2), (180, 4), (256, 1)])
def test_evaluation_covers_every_example_once(digits, batch_size, processes):
    split = digits["validation"]
    rows = np.split(np.arange(batch_size), processes)
    parts = [list(eval_batches(split, batch_size, part)) for part in rows]
    seen = []
    for batches in zip(*parts, strict=True):
        index = np.concatenate([batch["index"] for batch in batches])
        assert len(index) == batch_size
        seen.extend(index.tolist())
    assert seen[:180] == list(range(180)) and set(seen[180:]) <= {179}


@pytest.mark.parametrize(
    ("examples", "batch_size", "devices", "size"),
    [
        (180, 360, 1, 180),
        (360, 100, 1, 90),
        (100, 30, 1, 25),
        (10_000, 1000, 8, 1000),
        (7, 4, 2, 4),
    ],
)
def test_evaluation_batches_are_equal(examples, batch_size, devices, size):
    assert eval_batch_size(examples, batch_size, devices) == size


def test_refusals(digits):
    with pytest.raises(BadInput, match="batch_size=2000 is larger than the training split of 1257"):
        train_batches(digits["train"], 2000, 1, seed=0)
    with pytest.raises(BadInput, match="fold is 0 to 4; 5 was given"):
        load(fold=5)
    for examples, fold in ((200, None), (9, 0), (1001, 0)):
        with pytest.raises(BadInput, match=f"config.data.validation_examples={examples}"):
            load(validation_examples=examples, fold=fold)
    with pytest.raises(BadInput, match="cifar10 has a test split of its own"):
        load(name="cifar10", fold=1)
    with pytest.raises(BadInput, match="'digit' is neither 'digits' nor a set"):
        load(name="digit")


READER = """
import multiprocessing, time
from train.config.border import from_config_dict
from train.data.pipeline import train_batches
from train.data.sources import load_splits
from configs import digits

if __name__ == "__main__":
    data = load_splits(from_config_dict(digits.get_config()))["train"]
    batches = train_batches(data, 8, 1000, seed=0, workers=1)
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_workers_leave_signals_to_the_trainer_and_die_with_it(tmp_path):
    script = tmp_path / "reader.py"
    script.write_text(READER)
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    reader = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environ)
    assert reader.stdout is not None
    (worker,) = map(int, reader.stdout.readline().split())
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker, number)
    time.sleep(1)
    os.kill(worker, 0)  # raises where there is none
    reader.kill()
    reader.wait()
    end = time.monotonic() + 30
    while pathlib.Path(f"/proc/{worker}").exists() and time.monotonic() < end:
        time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
