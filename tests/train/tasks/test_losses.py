"""Losses against their definitions."""

import jax.numpy as jnp
import numpy as np

from train.tasks.task import cross_entropy

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (5, 4))


def test_cross_entropy():
    targets = RNG.dirichlet(np.ones(4), 5)
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    expected = -(targets * np.log(probabilities)).sum(-1)
    np.testing.assert_allclose(cross_entropy(jnp.asarray(LOGITS), targets), expected, rtol=1e-5)


def test_labels_are_distributions_of_one_class():
    labels = np.array([0, 3, 1, 1, 2])
    of_labels = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(labels))
    of_targets = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(np.eye(4)[labels]))
    np.testing.assert_allclose(of_labels, of_targets, rtol=1e-6)


def test_bfloat16_logits_are_not_summed_in_bfloat16():
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    loss = cross_entropy(logits, jnp.zeros(5, jnp.int32))
    exact = cross_entropy(logits.astype(jnp.float32), jnp.zeros(5, jnp.int32))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, exact, rtol=1e-6)


def test_smoothed_labels_are_smoothed_distributions():
    labels = np.array([[0, 3], [1, 1]])
    logits = jnp.asarray(RNG.normal(0, 3, (2, 2, 4)))
    smoothed = cross_entropy(logits, jnp.asarray(labels), smoothing=0.2)
    expected = cross_entropy(logits, jnp.asarray(0.8 * np.eye(4)[labels] + 0.05))
    np.testing.assert_allclose(smoothed, expected, rtol=1e-5)
