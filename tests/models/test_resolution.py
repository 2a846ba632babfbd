"""Weights over depth, refined without changing them, and projected onto other bases."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer import (
    DepthConfig,
    LMConfig,
    ViTConfig,
    make_model,
    project,
    refine,
    solvers,
)
from odeformer.models import resolution
from odeformer.transformer.bases import functions
from tests.helpers.trees import noisy, relative_error

SIZES = dict(width=16, heads=2, mlp=24)
VIT = ViTConfig(image_size=4, patch_size=2, channels=1, **SIZES)
IMAGES = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
DEPTHS = {
    "constant": dict(layers=4, share=2, steps=2),
    "hat": dict(layers=4, basis="hat", coefficients=3),
    "legendre": dict(layers=4, basis="legendre", coefficients=2),
    "fourier": dict(layers=4, basis="fourier", coefficients=3),
}


@functools.cache
def make_variables(depth):
    """Of a model of that depth, under any solver."""
    init = make_model(dataclasses.replace(VIT, depth=depth)).init
    return noisy(jax.jit(init)(jax.random.key(1), IMAGES), 0.02)


def make(**depth):
    depth = DepthConfig(**depth)
    variables = make_variables(dataclasses.replace(depth, solver="euler"))
    return variables, dataclasses.replace(VIT, depth=depth)


def logits(variables, config):
    return jax.jit(make_model(config).apply)(variables, IMAGES)


def theta(variables, depth, t):
    """Of one kernel, at times [T]."""
    w = np.asarray(variables["params"]["depth"]["groups"]["mlp_layer"]["up"]["kernel"])
    return np.tensordot(functions(depth.basis, depth.sets, depth.layers, t), w, 1)


BY_DEFAULT = [("constant", "midpoint"), ("hat", "strang"), ("legendre", "lie_trotter")]


@pytest.mark.parametrize(
    ("basis", "solver"),
    [
        *BY_DEFAULT,
        *(
            pytest.param(basis, solver, marks=pytest.mark.slow)
            for basis in DEPTHS
            for solver in solvers.NAMES
            if (basis, solver) not in BY_DEFAULT
        ),
    ],
)
def test_refining_changes_no_output(basis, solver):
    variables, config = make(solver=solver, **DEPTHS[basis])
    fine, fine_config = refine(variables, config)
    np.testing.assert_allclose(
        logits(fine, fine_config), logits(variables, config), rtol=1e-6, atol=1e-6
    )
    sets = {"constant": 4, "hat": 5, "legendre": 4, "fourier": 7}[basis]
    assert fine_config.depth.sets == sets and jax.tree.leaves(fine)[0].dtype == jnp.float32
    assert fine["params"]["depth"]["groups"]["mlp_layer"]["up"]["kernel"].shape == (sets, 16, 24)


@pytest.mark.parametrize(
    "basis", ["hat", *(pytest.param(b, marks=pytest.mark.slow) for b in DEPTHS if b != "hat")]
)
def test_refining_changes_no_output_of_a_pair(basis):
    """Which runs through the groups as they are, and then through more of them."""
    variables, config = make(solver="midpoint", **DEPTHS[basis])
    depth = dataclasses.replace(config.depth, reversible=0.99)
    pair = dataclasses.replace(config, depth=depth)
    expected = logits(variables, pair)
    np.testing.assert_allclose(logits(*refine(variables, pair)), expected, rtol=1e-5, atol=1e-6)
    assert relative_error(expected, logits(variables, config)) > 1e-4


@pytest.mark.parametrize("basis", DEPTHS)
def test_refining_changes_theta_at_no_time(basis):
    variables, config = make(**DEPTHS[basis])
    fine, fine_config = refine(variables, config)
    t = np.linspace(0.0, 4.0, 101)[:-1]
    expected = theta(variables, config.depth, t)
    assert len(np.unique(expected[:, 0, 0])) > 1
    np.testing.assert_allclose(theta(fine, fine_config.depth, t), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (dict(layers=4), "share=1 cannot be halved"),
        (dict(layers=6, share=3), "share=3 cannot be halved"),
        (dict(layers=4, share=2, steps=3), "steps=3 of a group do not divide over its two halves"),
        (dict(layers=4, basis="hat", coefficients=5), "steps=1 of a group"),
    ],
)
def test_what_cannot_be_refined(depth, message):
    config = dataclasses.replace(VIT, depth=DepthConfig(**depth))
    with pytest.raises(ValueError, match=message):
        refine({}, config)


def test_adaptive_steps_are_refined_without_steps():
    depth = DepthConfig(layers=4, share=4, solver="tsit5", rtol=1e-3)
    assert resolution.refined_depth(depth) == dataclasses.replace(depth, share=2)


# exp(sin s), s = 2 t / 48, by so many Legendre polynomials that it is exact to 1e-14.
SOURCE = DepthConfig(layers=48, basis="legendre", coefficients=32)
NODES, MASSES = np.polynomial.legendre.leggauss(128)


def projection_error(**depth):
    """Root of the mean over depth of (theta' - exp(sin s))^2."""
    phi = functions("legendre", 32, 48, 24 * (NODES + 1))
    w = (2 * np.arange(32) + 1) / 2 * ((MASSES * np.exp(np.sin(NODES + 1))) @ phi)

    target = DepthConfig(layers=48, **depth)
    w = resolution.projection(SOURCE, target) @ w
    t = (np.arange(48)[:, None] + (NODES + 1) / 2).ravel()
    error = functions(target.basis, target.sets, 48, t) @ w - np.exp(np.sin(t / 24))
    return np.sqrt(np.mean(np.tile(MASSES / 2, 48) * error**2) * 128)


@pytest.mark.parametrize("basis", ["constant", "hat"])
def test_projection_converges_at_its_order(basis):
    """Of first order onto constants, of second order onto lines between nodes."""
    counts, order = (6, 12, 24, 48), {"constant": 1, "hat": 2}[basis]
    depths = {
        "constant": [dict(share=48 // n) for n in counts],
        "hat": [dict(basis="hat", coefficients=n + 1) for n in counts],
    }
    errors = [projection_error(**depth) for depth in depths[basis]]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.2)


def test_projection_onto_polynomials_converges_beyond_every_order():
    assert projection_error(basis="legendre", coefficients=16) < 1e-8
    assert projection_error(basis="legendre", coefficients=4) > 1e-4


@pytest.mark.parametrize("basis", DEPTHS)
def test_projection_onto_the_same_space_changes_nothing(basis):
    depth = DepthConfig(**DEPTHS[basis])
    np.testing.assert_allclose(
        resolution.projection(depth, depth), np.eye(depth.sets), rtol=0, atol=1e-10
    )

    # And onto a space that holds it, it refines.
    fine = resolution.refined_depth(depth)
    np.testing.assert_allclose(
        resolution.projection(depth, fine), resolution.refinement(depth), rtol=0, atol=1e-10
    )


def test_a_projected_model():
    """From every layer's own weights to a straight line over depth, and in float32 onto itself."""
    variables, config = make(layers=4)
    line, line_config = project(variables, config, {"basis": "legendre", "coefficients": 2})
    assert line_config == dataclasses.replace(
        config, depth=DepthConfig(layers=4, basis="legendre", coefficients=2)
    )
    w = np.asarray(variables["params"]["depth"]["groups"]["mlp_layer"]["up"]["kernel"])
    mean = line["params"]["depth"]["groups"]["mlp_layer"]["up"]["kernel"][0]
    np.testing.assert_allclose(mean, w.mean(axis=0), rtol=1e-5, atol=1e-6)
    for name in ("head", "norm", "patches"):
        equal(line["params"][name], variables["params"][name])

    again, _ = project(line, line_config, line_config.depth)
    near = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
    jax.tree.map(near, again, line)
    assert logits(line, line_config).shape == (2, 10)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    ("before", "changes", "after"),
    [
        (dict(share=2, steps=4), dict(basis="hat", coefficients=5), dict(steps=2)),
        (dict(share=2), dict(basis="legendre", coefficients=2), dict(steps=None, share=1)),
        (dict(basis="hat", coefficients=5, steps=2), dict(basis="constant"), dict(steps=2)),
        (dict(), dict(share=2), dict(steps=None)),
        (dict(), dict(share=2, steps=1), dict(steps=1)),
        (dict(share=2, solver="tsit5", rtol=0.1), dict(share=1), dict(steps=None)),
    ],
)
def test_a_projected_depth_keeps_its_steps(before, changes, after):
    depth = resolution.projected_depth(DepthConfig(layers=4, **before), changes)
    assert {name: getattr(depth, name) for name in after} == after


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(layers=8), "over the same depth, layers=4; layers=8 was given"),
        (dict(basis="hat", coefficients=9), "4 steps in all do not divide over 8 groups"),
        (dict(basis="hats", coefficients=3), "Did you mean 'hat'"),
        (dict(coefficient=3), "unknown field of DepthConfig 'coefficient'"),
        (dict(basis="legendre"), "basis 'legendre' needs coefficients"),
    ],
)
def test_refused_projections(changes, message):
    config = dataclasses.replace(VIT, depth=DepthConfig(layers=4))
    with pytest.raises(ValueError, match=message):
        project({}, config, changes)


def test_variables_of_another_model_are_refused():
    """Of another width, and of another kind."""
    variables, config = make(layers=4)
    for other in (
        dataclasses.replace(config, width=32),
        dataclasses.replace(config, depth=DepthConfig(layers=8)),
        LMConfig(7, 8, depth=config.depth, **SIZES),
    ):
        with pytest.raises(ValueError, match="not those of the config's model: .* is .* model has"):
            project(variables, other, {"share": 2})
    with pytest.raises(ValueError, match="refine takes a ViTConfig or LMConfig or TextConfig"):
        refine(variables, config.depth)
