"""Register tokens, and what the head of a vision transformer reads in addition to them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import handwritten
from odeformer import ViT, ViTConfig
from odeformer.models.vit import POOLS
from tests.helpers.trees import noisy

DEPTH = {"layers": 2, "solver": "lie_trotter"}
SMALL = ViTConfig(
    image_size=(8, 12), patch_size=4, width=16, heads=2, mlp=32, depth=DEPTH, registers=3
)
IMAGES = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))


def make(**changes):
    model = ViT(dataclasses.replace(SMALL, **changes))
    return model, noisy(jax.jit(model.init)(jax.random.key(1), IMAGES))


def by_hand(params, pool, registers):
    """The normed tokens, with the registers after the class token, which alone has a position."""
    cut = [IMAGES[:, i : i + 4, j : j + 4] for i in (0, 4) for j in (0, 4, 8)]
    y = jnp.stack([patch.reshape(2, -1) for patch in cut], axis=1)
    y = y @ params["patches"]["projection"]["kernel"] + params["patches"]["projection"]["bias"]
    first = 0 if pool == "mean" else 1
    if first:
        y = jnp.concatenate([jnp.tile(params["class_token"], (2, 1, 1)), y], axis=1)
    y = y + params["positions"]
    tokens = jnp.tile(registers, (2, 1, 1))
    y = jnp.concatenate([y[:, :first], tokens, y[:, first:]], axis=1)
    y = handwritten.stack(handwritten.sequential_layer, params["depth"]["groups"], y)
    return handwritten.norm(params["norm"], y)


@pytest.mark.parametrize("pool", POOLS)
def test_tokens_and_logits_written_by_hand(pool):
    model, variables = make(pool=pool)
    params = variables["params"]
    y = jax.jit(by_hand, static_argnums=1)(params, pool, params["registers"])

    first = 3 if pool == "mean" else 4
    read = [y[:, 0]] if pool == "token" else [y[:, first:].mean(axis=1)]
    read = [y[:, 0], *read] if pool == "token_mean" else read
    logits = jnp.concatenate(read, axis=-1) @ params["head"]["kernel"] + params["head"]["bias"]
    found = jax.jit(model.apply)(variables, IMAGES)
    np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-5)

    # Without a head the same parameters give the tokens.
    bare = ViT(dataclasses.replace(model.config, classes=0))
    body = {"params": {name: leaf for name, leaf in params.items() if name != "head"}}
    shapes = jax.eval_shape(bare.init, jax.random.key(0), IMAGES)
    assert jax.tree.structure(shapes) == jax.tree.structure(body)
    tokens = jax.jit(bare.apply)(body, IMAGES)
    assert tokens.dtype == jnp.float32
    np.testing.assert_allclose(tokens, y, rtol=1e-5, atol=1e-5)


def test_registers_stand_after_the_token_of_distillation():
    model, variables = make(distillation="token", classes=0)
    params = variables["params"]
    assert params["positions"].shape == (1, 8, 16) and model.config.extra_tokens == 5
    tokens = jax.jit(model.apply)(variables, IMAGES)

    # Attention knows no order: registers exchanged are exchanged in the output alone.
    turned = {"params": params | {"registers": params["registers"][:, ::-1]}}
    order = np.array([0, 1, 4, 3, 2, *range(5, 11)])
    np.testing.assert_allclose(
        jax.jit(model.apply)(turned, IMAGES)[:, order], tokens, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(registers=-1), "registers is a whole number, 0 or more and less than .*; -1 was"),
        (dict(registers=2.0), "registers is a whole number.*2.0 was given"),
        (dict(classes=-1), "classes is a whole number, 0 or more.*-1 was given"),
        (dict(classes=None), "classes is a whole number, 0 or more.*None was given"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)
