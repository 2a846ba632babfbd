"""Fixtures shared by the tests."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs that several tests compile are compiled once, those of started programs among them.
_CACHE = tempfile.TemporaryDirectory(prefix="odeformer-tests-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Most of the tests' time is compilation, and their programs are tiny: LLVM need not try hard.
_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}"

import jax
import jax.numpy as jnp
import pytest

from configs import digits
from odeformer import VectorField


@pytest.fixture
def float64():
    """Turns on 64-bit numbers for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def smooth():
    """A smooth, nonlinear, time-dependent field of two terms, with a state and parameters."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "a": 0.5 * jax.random.normal(keys[0], (4, 4)),
        "b": 0.5 * jax.random.normal(keys[1], (4, 4)),
    }
    field = VectorField(
        terms=(
            lambda t, y, p: jnp.tanh(y @ p["a"]) * (1 + 0.5 * jnp.sin(3 * t)),
            lambda t, y, p: jnp.cos(t) * jnp.sin(y @ p["b"]),
        )
    )
    return field, jax.random.normal(keys[2], (3, 4)), params


def relative_error(tree, reference) -> float:
    """Norm of the difference over the norm of the reference, both over the whole tree."""
    difference = jax.tree.map(jnp.subtract, tree, reference)
    norm = lambda tree: jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))
    return float(norm(difference) / norm(reference))


def make_tiny():
    """Returns the digits config, shrunk to a run of seconds; dropout and drop-path act."""
    cfg = digits.get_config()
    cfg.train_steps, cfg.batch_size = 6, 32
    cfg.model.update(width=16, heads=2, mlp=32, dropout=0.1, drop_path=0.1)
    cfg.optimizer.warmup_steps = 2
    cfg.checkpoint.update(every_steps=3, keep=2)
    cfg.eval.update(every_steps=3, batch_size=128)
    cfg.log.every_steps = 1
    return cfg


@pytest.fixture
def tiny():
    """A config of `make_tiny`, to change."""
    return make_tiny()
