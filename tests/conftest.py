"""The environment of the tests, which is set before jax is imported, and shared fixtures."""

import os
import tempfile

from jaxlib import version as jaxlib_version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs that several tests compile are compiled once, those of started programs among them.
_CACHE = tempfile.TemporaryDirectory(prefix="odeformer-tests-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Most of the tests' time is compilation, and their programs are tiny: LLVM need not try hard.
_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# XLA stops at a flag that it does not know, and these may not stay. Compiling a program as a whole
# costs 8 % less CPU time than in parts (a train step of the tiny run, 5.1 against 5.6 seconds).
if jaxlib_version.__version_info__ < (0, 11):
    _QUICK += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}"

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from odeformer import VectorField, solvers, terms
from tests.helpers.opinions import Opinions
from tests.helpers.tiny import make_tiny


@pytest.fixture
def float64():
    """Turns on 64-bit numbers for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def tables():
    """Restores the tables of terms and solvers after a test that registers some."""
    held = [(table, dict(table)) for table in (terms._TERMS, solvers._SOLVERS)]
    yield
    for table, before in held:
        table.clear()
        table.update(before)


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


@pytest.fixture
def tiny():
    """A config of `make_tiny`, to change."""
    return make_tiny()


@pytest.fixture
def workdir(tmp_path):
    """A run's folder, with its config.json, which may be moved away."""
    path = epath.Path(tmp_path) / "run"
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


@pytest.fixture(scope="session")
def opinions_dir(tmp_path_factory):
    """A data_dir that holds the set 'opinions'."""
    folder = tmp_path_factory.mktemp("opinions")
    Opinions(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder
