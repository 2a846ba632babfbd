"""Training on a regularised flow: the loss by hand, what is random, evaluation, refusals."""

import dataclasses

import jax
import numpy as np
import pytest

from odeformer import RegularisedDepth, ViT
from tests.helpers.tiny import make_tiny
from tests.helpers.trees import noisy, relative_error
from train.config.border import from_config_dict
from train.config.regularise import RegulariseConfig, regularised
from train.config.stored import for_evaluation
from train.data.pipeline import train_batches
from train.data.sources import load_splits
from train.errors import BadInput
from train.gradient import make_gradient
from train.optimizer import make_optimizer
from train.state import make_init
from train.tasks import make_task
from train.tasks.task import Keys

OPTIONS = dict(kinetic=0.3, error=2.0, end_time=0.5)


def configure(**options):
    cfg = make_tiny()
    cfg.model.update(dropout=0.0, drop_path=0.0)
    cfg.depth.update(layers=4, solver="heun")  # two groups
    cfg.regularise.update(options)
    return from_config_dict(cfg)


def test_the_gradient_is_that_of_the_loss_and_the_sums_by_hand():
    config = configure(**OPTIONS)
    data = load_splits(config)["train"]
    task = make_task(config, data)
    batch = next(train_batches(data, config.batch_size, 1, seed=0))
    keys = Keys(jax.random.key(0), jax.random.split(jax.random.key(1), config.batch_size))
    inputs, targets = jax.jit(task.prepare)(batch, keys, task.constants())

    optimizer = make_optimizer(config.optimizer, config.train_steps)
    params = noisy(jax.jit(make_init(config, optimizer))(0).params)
    depth = RegularisedDepth(
        layers=4, share=2, solver="heun", sums=("kinetic", "error"), end_time=0.5
    )
    model = ViT(dataclasses.replace(config.model, depth=depth))

    def by_hand(params, key):
        rngs = {"dropout": key}
        logits, aux = model.apply(
            {"params": params}, *inputs, train=True, rngs=rngs, mutable=["ode"]
        )
        loss, _ = task.loss(logits, targets)
        kinetic, error = (aux["ode"][name].sum(0).mean() for name in ("kinetic", "error"))
        return loss + 0.3 * kinetic + 2.0 * error, (loss, kinetic, error)

    expected = jax.jit(jax.grad(by_hand, has_aux=True))
    found = jax.jit(make_gradient(config, task))
    seen = []
    for number in (2, 4):
        grads, metrics = found(params, inputs, targets, jax.random.key(number))
        wanted, sums = expected(params, jax.random.key(number))
        assert relative_error(grads, wanted) < 1e-5
        names = ("loss", "kinetic_energy", "error_estimate")
        np.testing.assert_allclose([metrics[name] for name in names], sums, rtol=1e-5)
        seen.append(float(metrics["kinetic_energy"]))

    # Another step, another end; the same step, the same one.
    assert abs(seen[0] - seen[1]) > 1e-3 * seen[0] > 0
    again, _ = found(params, inputs, targets, jax.random.key(4))
    jax.tree.map(np.testing.assert_array_equal, again, grads)


def test_off_is_the_model_itself():
    config = configure()
    assert config.regularise == RegulariseConfig()
    assert regularised(config.model, config.regularise) is config.model


def test_a_run_is_evaluated_without_it():
    """Also by a solver that could not train it."""
    config = for_evaluation(configure(**OPTIONS), {"depth.solver": "euler"})
    assert config.regularise == RegulariseConfig() and config.model.depth.solver == "euler"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(end_time=2.0), "config.regularise: end_time is less than .* 2 layers, .*; 2.0 was"),
        (dict(error=0.1), "config.regularise: solver 'rk4' has no error estimate, so there is no"),
        (dict(kinetic=-1.0), "config.regularise.kinetic is 0 or more; -1.0 was given"),
    ],
)
def test_refusals(options, message):
    cfg = make_tiny()
    cfg.regularise.update(options)
    with pytest.raises(BadInput, match=message):
        from_config_dict(cfg)
