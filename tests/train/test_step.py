"""The train step against one written by hand; the evaluation step; that both read every key."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from odeformer import ViT
from tests.helpers.keys_read import keys_read
from tests.helpers.tiny import make_tiny
from tests.helpers.trees import noisy, relative_error
from train.augment.mixing import mix
from train.augment.pipeline import augment
from train.config.border import from_config_dict
from train.data.pipeline import train_batches
from train.data.sources import load_splits
from train.devices.mesh import device_mesh
from train.loop import train
from train.optimizer import make_optimizer
from train.scores import make_eval_step
from train.state import init_state
from train.step import lower_train_step, make_train_step
from train.tasks import make_task


def make_quick():
    """The tiny config under a solver that is compiled in half the time of RK4."""
    cfg = make_tiny()
    cfg.depth.solver = "heun"
    return cfg


def make(seed=0, dropout=0.0, **augment):
    """A tiny run: its config, training split, mesh, state and first batch."""
    cfg = make_quick()
    cfg.seed = seed
    cfg.model.update(dropout=dropout, drop_path=0.0)
    cfg.data.augment.update(shift_px=0.0, rotate_degrees=0.0, zoom=0.0)
    cfg.data.augment.update(augment)
    cfg.optimizer.update(warmup_steps=0, label_smoothing=0.1, clip_norm=0.25)
    config = from_config_dict(cfg)
    data = load_splits(config)["train"]
    mesh = device_mesh(config.mesh)
    state = init_state(config, make_optimizer_of(config), mesh)
    batch = next(train_batches(data, config.batch_size, config.train_steps, config.seed))
    return config, data, mesh, state, batch


def make_optimizer_of(config):
    return make_optimizer(config.optimizer, config.train_steps)


@pytest.fixture(scope="module")
def stepped():
    """A run before and after its first step."""
    config, data, mesh, state, batch = make()
    before = jax.device_get(state)
    after, metrics = make_train_step(
        config, make_optimizer_of(config), make_task(config, data), mesh
    )(state, batch)
    return config, data, mesh, batch, before, jax.device_get(after), jax.device_get(metrics)


def test_a_step_is_the_one_written_by_hand(stepped):
    config, data, _, batch, before, after, metrics = stepped
    images = (batch["image"] / 16 - np.asarray(data.mean)) / np.asarray(data.std)
    targets = 0.9 * np.eye(10)[batch["label"]] + 0.01

    def loss(params):
        logits = ViT(config.model).apply({"params": params}, jnp.asarray(images, jnp.float32))
        return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(before.params)
    norm = optax.global_norm(gradient)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
    assert norm > 0.25  # so that it is clipped

    rate, options = metrics["learning_rate"], config.optimizer
    np.testing.assert_allclose(rate, options.learning_rate, rtol=1e-6)

    def updated(path, parameter, slope):
        slope = slope * (0.25 / norm)
        step = slope / (jnp.abs(slope) + 1e-8)  # Adam's first, both moments corrected
        decay = options.weight_decay if path[-1].key == "kernel" else 0.0
        return parameter - rate * (step + decay * parameter)

    expected = jax.tree_util.tree_map_with_path(updated, before.params, gradient)
    change = jax.tree.map(jnp.subtract, after.params, before.params)
    wanted = jax.tree.map(jnp.subtract, expected, before.params)
    assert relative_error(change, wanted) < 1e-3
    mean = jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, before.ema, after.params)
    assert relative_error(after.ema, mean) < 1e-6  # at the first step 1/10 is kept
    assert int(after.step) == 1


def test_scores_are_those_of_the_model(stepped):
    config, data, mesh, batch, before, _, _ = stepped
    scores = make_eval_step(config.model, make_task(config, data), mesh)(before.params, batch)
    images = data.standardise(data.to_unit(jnp.asarray(batch["image"])))
    logits = ViT(config.model).apply({"params": before.params}, images)
    chosen = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), batch["label"][:, None], 1)
    np.testing.assert_allclose(scores["loss"], -chosen[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(scores["correct"], logits.argmax(-1) == batch["label"])
    assert set(np.asarray(scores["nfe"])) == {8} and not np.asarray(scores["failed"]).any()


def test_what_is_random_follows_from_seed_step_draw_and_index():
    """The loss under dropout, mixing and augmentation, with keys derived by hand.

    Dropout and mixing are drawn from the seed and the step, an image's augmentation from the seed,
    the number of its draw and its index.
    """
    config, data, mesh, state, batch = make(seed=3, dropout=0.2, mixup=1.0, shift_px=2.0)
    state = replace(state, params=noisy(state.params, 0.3))  # whose logits are not all small
    params, settings = jax.device_get(state.params), config.data.augment
    step = make_train_step(config, make_optimizer_of(config), make_task(config, data), mesh)

    @jax.jit
    def by_hand(number, draw):
        dropout, mixing, sample = jax.random.split(jax.random.key(3), 3)
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(sample, draw), i))(
            batch["index"]
        )
        images = data.to_unit(jnp.asarray(batch["image"]))
        images = augment(settings, keys, images, data.standardise, data.mean)
        mixing = jax.random.fold_in(mixing, number)
        images, targets = mix(settings, mixing, images, batch["label"], 10, 0.1)
        rngs = {"dropout": jax.random.fold_in(dropout, number)}
        logits = ViT(config.model).apply({"params": params}, images, train=True, rngs=rngs)
        return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()

    losses = []
    for number, draw in ((0, 0), (5, 0), (0, 5)):
        now = jax.tree.map(jnp.copy, replace(state, step=jnp.int32(number)))  # it is donated
        _, metrics = step(now, {**batch, "draw": np.full_like(batch["draw"], draw)})
        np.testing.assert_allclose(metrics["loss"], by_hand(number, draw), rtol=1e-5)
        losses.append(float(metrics["loss"]))
    assert "accuracy" not in metrics  # labels are mixed
    assert np.diff(np.sort(losses)).min() > 1e-2  # each of the two numbers matters


# What the digits do not reach; data/images/test_prepared.py reads them.
KEYS_ELSEWHERE = ("data_dir", "skip_corrupt")
ELSEWHERE = {f"ImageDataConfig.{key}" for key in KEYS_ELSEWHERE}


# By default tests/train/config/test_keys_act.py shows of every key that it acts.
@pytest.mark.slow
def test_every_key_is_read(tmp_path):
    """Each field is read by a run, or while a step with everything on is traced."""

    def action():
        train(make_quick(), tmp_path)
        config, data, mesh, _, batch = make(
            crop_padding_px=1, crop_min_area=0.5, flip=True, randaugment_ops=1, erasing=0.5,
            mixup=0.8, cutmix=1.0,
        )  # fmt: skip
        options = replace(config.optimizer, schedule="wsd")  # reads decay_steps
        optimizer = make_optimizer(options, config.train_steps)
        lower_train_step(config, optimizer, make_task(config, data), mesh, batch)

    read, every = keys_read(action, make_quick())
    assert every - read == ELSEWHERE
