"""The gradient of a batch: taken in parts, it is that of the whole."""

import dataclasses

import jax
import numpy as np
import pytest

from odeformer import flops
from tests.helpers.tiny import make_tiny, make_tiny_language
from tests.helpers.trees import relative_error
from train.config.border import from_config_dict
from train.data.pipeline import train_batches
from train.data.sources import load_splits
from train.gradient import make_gradient
from train.optimizer import make_optimizer
from train.state import make_init
from train.tasks import make_task
from train.tasks.task import Keys


@pytest.mark.parametrize("make", [make_tiny, make_tiny_language])
def test_parts_add_up_to_the_whole(make):
    """Also where the parts' losses are means over different numbers of tokens, sums over rows."""
    results = []
    for parts in (1, 4):
        cfg = make()
        cfg.model.update(dropout=0.0, drop_path=0.0)
        cfg.depth.update(solver="euler")
        cfg.regularise.kinetic = 0.5 if make is make_tiny_language else 0.0
        cfg.parallel.accumulate = parts
        config = from_config_dict(cfg)
        data = load_splits(config)["train"]
        task = make_task(config, data)
        batch = next(train_batches(data, config.batch_size, 1, seed=0))
        if "segments" in batch:
            batch["segments"][0, 5:] = 0  # padding, in one of the parts
        optimizer = make_optimizer(config.optimizer, config.train_steps)
        params = jax.jit(make_init(config, optimizer))(0).params
        keys = Keys(jax.random.key(0), jax.random.split(jax.random.key(1), config.batch_size))
        inputs, targets = task.prepare(batch, keys, task.constants())
        gradient = jax.jit(make_gradient(config, task))
        results.append(gradient(params, inputs, targets, jax.random.key(2)))
    (whole, metrics), (added, same) = results
    assert relative_error(added, whole) < 1e-6
    for name in metrics:
        np.testing.assert_allclose(same[name], metrics[name], rtol=1e-6)


def test_what_is_frozen_costs_no_gradient():
    """Its gradient is zeros, and the products of its kernels' gradients are not computed."""
    products, zeros = [], []
    for freeze in ((), ("depth/groups/mlp_layer",)):
        cfg = make_tiny()
        cfg.depth.update(layers=1, share=1, solver="euler", adjoint="store")
        cfg.optimizer.freeze = freeze
        config = from_config_dict(cfg)
        data = load_splits(config)["train"]
        task = make_task(config, data)
        batch = next(train_batches(data, config.batch_size, 1, seed=0))
        keys = Keys(jax.random.key(0), jax.random.split(jax.random.key(1), config.batch_size))
        inputs, targets = jax.eval_shape(task.prepare, batch, keys, task.constants())
        optimizer = make_optimizer(config.optimizer, config.train_steps)
        params = jax.eval_shape(make_init(config, optimizer), 0).params

        gradient = make_gradient(config, task)
        products.append(flops.count(gradient, params, inputs, targets, jax.random.key(2)))
        found, _ = jax.eval_shape(gradient, params, inputs, targets, jax.random.key(2))
        zeros.append(jax.tree.map(lambda x: (x.shape, x.dtype), found))

    model = config.model
    up_and_down = 2 * (2 * model.width * model.mlp)
    tokens = config.batch_size * (model.grid[0] * model.grid[1])
    assert products[0] - products[1] == tokens * up_and_down
    assert zeros[0] == zeros[1]


def test_parts_draw_masks_of_their_own():
    """Two parts of the same examples, under dropout, are not twice the same part."""
    cfg = make_tiny()
    cfg.model.update(dropout=0.5, drop_path=0.0)
    cfg.depth.update(layers=1, share=1, solver="euler")
    cfg.parallel.accumulate = 2
    config = from_config_dict(cfg)
    data = load_splits(config)["train"]
    task = make_task(config, data)

    # Of examples a, a, b, b, ... the first of each two is in one part, the second in the other.
    batch = next(train_batches(data, config.batch_size, 1, seed=0))
    keys = Keys(jax.random.key(0), jax.random.split(jax.random.key(1), config.batch_size))
    twins = jax.tree.map(
        lambda x: x.repeat(2, axis=0)[: len(x)], task.prepare(batch, keys, task.constants())
    )
    params = jax.jit(make_init(config, make_optimizer(config.optimizer, config.train_steps)))(0)
    gradient = jax.jit(make_gradient(config, task))
    both, _ = gradient(params.params, *twins, jax.random.key(2))

    config = dataclasses.replace(
        config, parallel=dataclasses.replace(config.parallel, accumulate=1)
    )
    one = jax.jit(make_gradient(config, task))
    half = jax.tree.map(lambda x: x[::2], twins)
    for key in (jax.random.key(2), jax.random.fold_in(jax.random.key(2), 0)):
        found, _ = one(params.params, *half, key)
        assert relative_error(both, found) > 1e-2
