"""The optimiser's chain: schedule, clipping, decay by name, the average of the weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer import LM, ViT, presets
from train.config.border import from_config_dict
from train.optimizer import decay_mask, make_optimizer, make_schedule, update_ema


@pytest.fixture
def options(tiny):
    return from_config_dict(tiny).optimizer


def test_schedule(options):
    options = dataclasses.replace(options, warmup_steps=10, learning_rate=2.0)
    rate = make_schedule(options, 110)
    np.testing.assert_allclose(
        [rate(step) for step in (0, 5, 10, 60, 110)], [0, 1, 2, 1, 0], atol=1e-6
    )


def test_kernels_alone_decay():
    config = presets.vit("digits", pool="token", time="additive")
    images = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    params = jax.eval_shape(ViT(config).init, jax.random.key(0), images)["params"]
    flags = {
        "/".join(key.key for key in path): flag
        for path, flag in jax.tree_util.tree_leaves_with_path(decay_mask(params))
    }
    assert flags["depth/groups/attention_layer/qkv/kernel"] and flags["head/kernel"]
    undecayed = {name for name, flag in flags.items() if not flag}
    assert {"positions", "class_token", "norm/scale", "depth/groups/mlp_layer/up/bias"} <= undecayed
    assert all(name.endswith("kernel") == flag for name, flag in flags.items())


def test_embeddings_of_tokens_decay_and_those_of_positions_do_not():
    model = LM(presets.lm("gpt_small"))
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    params = decay_mask(jax.eval_shape(model.init, jax.random.key(0), tokens)["params"])
    assert params["embedding"]["embedding"] and not params["position_embedding"]["embedding"]


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_clipping_is_by_the_norm_of_the_whole(options, clip_norm):
    options = dataclasses.replace(options, clip_norm=clip_norm, warmup_steps=0, weight_decay=0.0)
    optimizer = make_optimizer(options, 10)
    params = {"a": {"kernel": jnp.zeros(3)}, "b": {"bias": jnp.zeros(4)}}
    grads = jax.tree.map(jnp.ones_like, params)
    _, state = optimizer.update(grads, optimizer.init(params), params)
    (mean,) = [leaf.mu for leaf in jax.tree.leaves(state, is_leaf=_is_adam) if _is_adam(leaf)]
    norm = np.sqrt(7) if clip_norm is None else clip_norm
    seen = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(mean)))
    np.testing.assert_allclose(seen, (1 - options.b1) * norm, rtol=1e-5)


def _is_adam(leaf):
    return hasattr(leaf, "mu")


def test_the_average_forgets_the_initial_weights_soon():
    mean = jnp.zeros(())
    for step in range(100):
        mean = update_ema(0.9, jnp.int32(step), mean, jnp.ones(()))
    assert float(mean) > 0.999
    first = update_ema(0.9, jnp.int32(0), jnp.float32(5.0), jnp.float32(1.0))
    np.testing.assert_allclose(first, 0.1 * 5.0 + 0.9 * 1.0, rtol=1e-6)
    late = update_ema(0.9, jnp.int32(10_000), jnp.float32(5.0), jnp.float32(1.0))
    np.testing.assert_allclose(late, 0.9 * 5.0 + 0.1 * 1.0, rtol=1e-6)
