"""Learned positions on another grid: against Pillow, against transformers, and what stays."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from odeformer.interop import (
    dinov2,
    load_config,
    load_pretrained,
    resample_positions,
    vit,
)
from odeformer.interop.positions import antialiased, plain
from tests.helpers.checkout import ROOT

DATA = ROOT / "tests" / "data" / "interop"
SQUARE = sorted(path.parent.name for path in DATA.glob("*/resized.npz"))
RENEW = "made by tests/data/interop/recipe.py, which says how"


def table(grid, before, width=3):
    """Positions of unit size: `before` of tokens outside of the grid, then those of the grid."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(1, before + math.prod(grid), width)).astype(np.float32)


@pytest.mark.parametrize(
    ("old", "new", "before"),
    [
        ((14, 14), (24, 24), 1),  # 197 tokens
        ((14, 14), (24, 24), 0),  # 196
        ((14, 14), (7, 7), 1),
        ((14, 14), (10, 17), 2),
        ((5, 8), (9, 4), 5),
        ((2, 2), (1, 3), 1),
    ],
)
def test_positions_are_resampled_as_pillow_does(old, new, before):
    given = table(old, before)
    found = resample_positions(given, old, new)
    assert found.shape == (1, before + math.prod(new), 3) and found.dtype == np.float32
    np.testing.assert_array_equal(found[:, :before], given[:, :before])
    for axis in range(3):
        places = Image.fromarray(given[0, before:, axis].reshape(old), mode="F")
        resized = places.resize(new[::-1], Image.Resampling.BICUBIC)
        expected = np.asarray(resized).reshape(-1)
        np.testing.assert_allclose(found[0, before:, axis], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", [antialiased, plain])
@pytest.mark.parametrize("before", [0, 1, 5])
def test_the_same_grid_is_the_same_table(rule, before):
    given = table((14, 14), before)
    np.testing.assert_array_equal(resample_positions(given, (14, 14), (14, 14), rule), given)


def test_a_constant_stays_one_and_halves_keep_their_dtype():
    for rule in (antialiased, plain):
        given = jnp.full((1, 17, 2), 0.5, jnp.bfloat16)
        found = resample_positions(given, (4, 4), (7, 3), rule)
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found, np.full((1, 22, 2), 0.5))


@pytest.mark.parametrize("name", SQUARE)
def test_logits_at_another_size_are_those_of_transformers(name):
    golden = np.load(DATA / name / "resized.npz")
    size = golden["images"].shape[1:3]
    model, variables = load_pretrained(DATA / name, image_size=size)
    logits = np.asarray(jax.jit(model.apply)(variables, golden["images"]))
    assert np.abs(logits - golden["logits"]).max() < 1e-5 * np.abs(golden["logits"]).max(), RENEW
    assert model.config.grid == (3, 5) and model.config == load_config(DATA / name, image_size=size)

    # Its own rule, which is ours for models with registers alone.
    native, stored = load_pretrained(DATA / name)
    ours = resample_positions(stored["params"]["positions"], native.config.grid, (3, 5))
    is_ours = np.abs(ours - variables["params"]["positions"]).max() < 1e-2
    assert is_ours == ("registers" in name)


def test_each_kind_of_image_model_is_stored_at_another_size():
    """But for those that were made for images that are not square: transformers reads them so."""
    kinds = [json.loads((DATA / name / "config.json").read_text()) for name in SQUARE]
    assert {raw["architectures"][0] for raw in kinds} == {*vit.DISTILLATION, *dinov2.ARCHITECTURES}


def test_a_config_is_read_without_the_weights(tmp_path):
    (tmp_path / "config.json").write_text((DATA / "vit_wide" / "config.json").read_text())
    model, _ = load_pretrained(DATA / "vit_wide", dtype="bfloat16", depth={"solver": "euler"})
    assert load_config(tmp_path, dtype="bfloat16", depth={"solver": "euler"}) == model.config
    wide = dataclasses.replace(load_config(tmp_path), image_size=(16, 8))
    assert load_config(tmp_path, image_size=(16, 8)) == wide


def test_refusals():
    with pytest.raises(ValueError, match="a table of 9 positions is no grid of 4 x 3 patches"):
        resample_positions(table((3, 3), 0), (4, 3), (5, 5))
    with pytest.raises(ValueError, match="image_size takes a ViTConfig; LMConfig"):
        load_pretrained(DATA / "gpt2", image_size=8)
    with pytest.raises(ValueError, match="patch_size"):
        load_pretrained(DATA / "vit", image_size=10)
