"""Fixtures shared by the tests."""

import contextlib
import copy
import functools
import io
import os
import pathlib
import re
import resource
import runpy
import subprocess
import sys
import tempfile
import warnings

from jaxlib import version as jaxlib_version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs that several tests compile are compiled once, those of started programs among them.
_CACHE = tempfile.TemporaryDirectory(prefix="odeformer-tests-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Most of the tests' time is compilation, and their programs are tiny: LLVM need not try hard.
_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# XLA stops at a flag that it does not know, and this one may not stay.
if jaxlib_version.__version_info__ < (0, 11):
    _QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}"

import jax
import jax.numpy as jnp
import pytest
from etils import epath
from opinions import Opinions

from configs import digits, pydocs, sst2
from odeformer import VectorField
from train.scores import score

ROOT = pathlib.Path(__file__).parent.parent


def code_block(page):
    """Returns the one block of Python of a page, given by its path in the checkout."""
    text = (ROOT / page).read_text()
    (code,) = re.findall(r"^```\{?\.?python.*\n((?s:.*?))^```", text, flags=re.MULTILINE)
    return code


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


@jax.jit
def noisy(variables, scale=0.1):
    """The variables, none of them zero, so that no part of a model is without effect."""
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


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


def make_tiny_language():
    """Returns a language run of seconds on the licence's text, over byte-pair tokens."""
    cfg = pydocs.get_config()
    cfg.train_steps, cfg.batch_size = 6, 8
    cfg.data.update(name="files", files=str(ROOT / "LICENSE"), tokenizer="bpe")
    cfg.data.held_out_fraction = 0.1
    cfg.model.update(vocabulary=300, block_size=32, width=16, heads=2, mlp=32, dropout=0.1)
    cfg.depth.update(layers=2, share=2, solver="heun")
    cfg.optimizer.update(warmup_steps=2, ema_decay=0.9)
    cfg.checkpoint.update(every_steps=3, keep=2)
    cfg.eval.update(every_steps=3, batch_size=128)
    cfg.log.every_steps = 1
    return cfg


def make_tiny_sentences(data_dir):
    """Returns a classifier's run of seconds on the set of `opinions_dir`."""
    cfg = sst2.get_config()
    cfg.train_steps, cfg.batch_size = 6, 8
    cfg.data.update(name="opinions", data_dir=str(data_dir), held_out_fraction=0.2)
    cfg.model.update(vocabulary=280, block_size=12, width=16, heads=2, mlp=32)
    cfg.optimizer.update(warmup_steps=2)
    cfg.checkpoint.update(every_steps=3, keep=2)
    cfg.eval.update(every_steps=3, batch_size=128)
    cfg.log.every_steps = 1
    return cfg


def start(monkeypatch, module, *arguments):
    """Runs a program's main in this process, on flags that no other start has parsed."""
    monkeypatch.setattr(module, "FLAGS", copy.deepcopy(_pristine(module)))
    module.main([module.__name__, *arguments])


def run(module, *arguments):
    """What a program comes to, without a process of its own: its exit code and what it prints."""
    out, err = io.StringIO(), io.StringIO()
    command = [module, *arguments]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", command)
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        warnings.filterwarnings("ignore", message=".* found in sys.modules")
        with pytest.raises(SystemExit) as end:
            runpy.run_module(module, run_name="__main__")
    return subprocess.CompletedProcess(command, end.value.code, out.getvalue(), err.getvalue())


@functools.cache
def _pristine(module):
    return copy.deepcopy(module.FLAGS)


def interrupt_at_second_score():
    """Returns train.loop's score, but for an interruption at its second call."""
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(*args, **kwargs)

    return interrupted


def timeless(line):
    """A line of metrics.jsonl without what depends on the time of day."""
    timed = ("_per_sec", "/mfu")
    return {name: value for name, value in line.items() if not name.endswith(timed)}


@contextlib.contextmanager
def full_disk(limit=0):
    """Has every file of this process fail to grow beyond `limit` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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
