"""JAX's strict modes: no implicit promotion of dtypes or ranks; runs without jit."""

import contextlib
import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odeformer import (
    LM,
    DepthConfig,
    LMConfig,
    TextClassifier,
    TextConfig,
    ViT,
    ViTConfig,
    make_model,
    solvers,
)
from odeformer.models.decoding import init_cache
from tests.helpers.programs import interrupt_at_second_score
from tests.helpers.tiny import make_tiny, make_tiny_language, make_tiny_sentences
from tests.helpers.trees import noisy, relative_error
from tests.train.augment.test_pipeline import EVERYTHING, FILL, IMAGES, KEYS
from train import optimizer as optimizers
from train.augment.mixing import mix
from train.augment.operations import ADJUSTMENTS, ENHANCEMENTS, WARPS
from train.augment.pipeline import augment
from train.checkpoint.weights import load_params
from train.config.border import from_config_dict
from train.config.data import AugmentConfig
from train.data.sources import load_splits
from train.data.text.tokenizer import ByteTokenizer
from train.devices.mesh import device_mesh, on_mesh
from train.loop import train
from train.scores import make_eval_step
from train.state import abstract_state
from train.step import lower_train_step
from train.tasks import make_task

SIZES = dict(width=16, heads=2, mlp=32)
EVERY_OPTION = dict(
    time="additive", fused=True, dtype="bfloat16", dropout=0.1, drop_path=0.1, **SIZES
)
# The sum that is fused is of the default terms alone.
TERMS = dict(EVERY_OPTION, fused=False, terms=("attention", "mlp", "conv", "damping"))
SHARED_KEYS = dict(TERMS, kv_heads=1, head_size=6, qk_norm=True, norm="rms", gated=True, centre=0.5)
FIXED = DepthConfig(layers=2, share=2, solver="rk4")
ADAPTIVE = DepthConfig(layers=2, share=2, solver="bosh3", rtol=1e-3, per_sample=True)
PIXELS = jax.ShapeDtypeStruct((2, 8, 12, 3), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((2, 8), jnp.int32)
MASK = jax.ShapeDtypeStruct((2, 8), bool)


@contextlib.contextmanager
def strictly():
    """A context in which JAX promotes neither dtypes nor ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def trace(config, *inputs):
    """Traces a model's initialisation and its gradient in training; where JAX refuses, it raises.

    What is refused is refused while it is traced: nothing need be compiled.
    """
    model = make_model(config)

    def loss(variables, *inputs):
        rngs = {"dropout": jax.random.key(1)}
        return jnp.sum(model.apply(variables, *inputs, train=True, rngs=rngs))

    with strictly():
        variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
        return jax.eval_shape(jax.grad(loss), variables, *inputs)


@pytest.mark.parametrize(
    "changes",
    [
        dict(pool="token", positions="sincos", **EVERY_OPTION),
        dict(pool="mean", positions="learned", **EVERY_OPTION),
        dict(pool="token", positions="learned", **SIZES),
        dict(pool="mean", positions="sincos", time="additive", **SIZES),
        dict(depth=dataclasses.replace(FIXED, solver="strang"), **SIZES),
        TERMS,
    ],
)
def test_vit(changes):
    trace(ViTConfig(image_size=(8, 12), patch_size=4, **{"depth": FIXED, **changes}), PIXELS)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_language_model(positions):
    config = LMConfig(7, 8, positions=positions, depth=FIXED, **EVERY_OPTION)
    trace(config, TOKENS, TOKENS, TOKENS)
    trace(dataclasses.replace(config, tied=False, dtype="float32"), TOKENS)
    trace(dataclasses.replace(config, **TERMS), TOKENS, TOKENS, TOKENS)
    trace(dataclasses.replace(config, **SHARED_KEYS), TOKENS, TOKENS, TOKENS)
    scaled = dict(rotary_scaling="llama3", rotary_factor=2.0, rotary_fraction=0.7)
    if positions == "rotary":
        trace(dataclasses.replace(config, **SHARED_KEYS, **scaled), TOKENS, TOKENS, TOKENS)


@pytest.mark.parametrize(("pool", "depth"), [("mean", ADAPTIVE), ("first", FIXED)])
def test_text_classifier(pool, depth):
    trace(TextConfig(7, 8, pool=pool, depth=depth, **EVERY_OPTION), TOKENS, MASK)


@pytest.mark.parametrize("solver", ["lie_trotter", "euler", "rk4"])
@pytest.mark.parametrize("changes", [{}, dict(terms=TERMS["terms"]), SHARED_KEYS])
def test_generation(solver, changes):
    program = importlib.import_module("odeformer.models.generate")._read_and_sample
    depth = DepthConfig(layers=2, share=2, solver=solver)
    options = SIZES | dict(time="additive", dtype="bfloat16") | changes
    config = LMConfig(7, 8, depth=depth, **options)
    model = LM(config)
    with strictly():
        variables = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
        cache = jax.eval_shape(lambda: init_cache(config, 2))
        for lengths, top_k, top_p in ((np.array([3, 8], "i4"), None, None), (None, 2, 0.5)):
            arguments = (TOKENS, cache, lengths, 0, jax.random.key(0), 1.0, top_k, top_p)
            program.eval_shape(model, variables, *arguments)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_are_those_of_the_usual_modes(dtype):
    """In float32 the program is the same; in bfloat16 the attention is written out."""
    options = EVERY_OPTION | dict(dtype=dtype)
    model = ViT(ViTConfig(image_size=8, patch_size=4, channels=1, depth=FIXED, **options))
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    variables = noisy(jax.jit(model.init)(jax.random.key(0), images))
    usual = jax.jit(model.apply).lower(variables, images)
    with strictly():
        strict = jax.jit(model.apply).lower(variables, images)
    assert (strict.as_text() == usual.as_text()) == (dtype == "float32")
    if dtype == "bfloat16":
        a, b = (program.compile()(variables, images) for program in (usual, strict))
        assert relative_error(b, a) < 0.01  # a rounding is 0.004


@pytest.mark.parametrize("name", [*WARPS, *ENHANCEMENTS, *ADJUSTMENTS])
def test_each_operation(name):
    image, strength = IMAGES[0], jnp.float32(0.5)
    with strictly():
        if name in WARPS:
            jax.eval_shape(WARPS[name], strength, 12, 12)
        elif name in ENHANCEMENTS:
            jax.eval_shape(ENHANCEMENTS[name], image)
            jax.eval_shape(ENHANCEMENTS[name], image[..., :1])
        else:
            jax.eval_shape(ADJUSTMENTS[name], image, strength)


def test_augmentation():
    config = AugmentConfig(**EVERYTHING, mixup=0.8, cutmix=1.0)
    with strictly():
        jax.eval_shape(lambda k, x: augment(config, k, x, lambda x: x, FILL), KEYS, IMAGES)
        jax.eval_shape(
            lambda key, x, y: mix(config, key, x, y, 10, 0.1), KEYS[0], IMAGES, np.arange(4)
        )


def make_strict(make, **parallel):
    """A tiny run's config in which every part of a training step acts."""
    cfg = make()
    cfg.model.update(dtype="bfloat16", fused=True, time="additive", drop_path=0.1)
    cfg.optimizer.update(clip_norm=1.0, ema_decay=0.9, label_smoothing=0.1)
    cfg.guard.sigmas = 3.0
    cfg.parallel.update(parallel)
    if cfg.task == "images":
        cfg.data.augment.update(EVERYTHING, mixup=0.8, cutmix=1.0, randaugment_ops=0)
    else:
        cfg.data.tokenizer, cfg.model.vocabulary = "bytes", 257
    if cfg.task == "sentences":
        cfg.data.token_dropout = 0.1
    return cfg


@pytest.mark.parametrize("task", ["images", "language", "sentences"])
def test_steps_of_each_task(task, opinions_dir):
    make = {
        "images": make_tiny,
        "language": make_tiny_language,
        "sentences": lambda: make_tiny_sentences(opinions_dir),
    }[task]
    parallel = dict(accumulate=2) if task == "language" else {}
    config = from_config_dict(make_strict(make, **parallel))
    split = load_splits(config, None if task == "images" else ByteTokenizer())["train"]
    mesh, index = device_mesh(config.mesh), np.arange(config.batch_size)
    batch = split.gather(index, index) | {"draw": index.astype(np.int32)}
    with strictly():
        tasks = make_task(config, split)
        adam = optimizers.make_optimizer(config.optimizer, config.train_steps)
        lower_train_step(config, adam, tasks, mesh, batch)
        params = abstract_state(config, adam, mesh).params
        with on_mesh(mesh, config.model):
            jax.eval_shape(make_eval_step(config.model, tasks, mesh), params, batch)


def shortest(cfg):
    """The same run in two steps, each saved, of few primitives."""
    cfg.train_steps, cfg.batch_size = 2, 4
    cfg.depth.update(solver="euler", layers=1, share=1)
    cfg.optimizer.warmup_steps = 1
    cfg.checkpoint.every_steps = cfg.eval.every_steps = 1
    return cfg


def test_a_run_under_strict_modes(tmp_path, opinions_dir):
    cfg = shortest(make_tiny_sentences(opinions_dir))
    with strictly():
        last = train(cfg, tmp_path)
        assert np.isfinite(last["test/loss"])
        load_params(tmp_path, from_config_dict(cfg))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["images", "language"])
def test_other_runs_under_strict_modes(task, tmp_path):
    cfg = shortest(make_tiny() if task == "images" else make_tiny_language())
    with strictly():
        assert np.isfinite(train(cfg, tmp_path)["test/loss"])


@pytest.mark.slow
@pytest.mark.parametrize("task", ["images", "language", "sentences"])
def test_a_run_without_jit_saves_and_resumes(task, tmp_path, opinions_dir):
    """As under JAX_DISABLE_JIT=1: the states are those of a run with it, to rounding."""
    if task == "sentences":
        cfg = shortest(make_tiny_sentences(opinions_dir))
    else:
        cfg = shortest(make_tiny() if task == "images" else make_tiny_language())
    with jax.disable_jit():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("train.run.score", interrupt_at_second_score())
            with pytest.raises(KeyboardInterrupt):
                train(cfg, tmp_path / "without")
        train(cfg, tmp_path / "without")
    train(cfg, tmp_path / "with")
    config = from_config_dict(cfg)
    a, b = (load_params(tmp_path / name, config) for name in ("without", "with"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), a, b)


def test_every_solver_steps_strictly():
    """diffrax itself is strict, and so are the steps written out here."""
    for name in solvers.NAMES:
        depth = DepthConfig(layers=2, share=2, solver=name)
        config = TextConfig(7, 8, depth=depth, **SIZES)
        model = TextClassifier(config)
        with strictly():
            variables = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
            jax.eval_shape(model.apply, variables, TOKENS)
