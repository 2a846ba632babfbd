"""Runs that are exported, of each task: saved, and not trained."""

import jax
import numpy as np
import pytest

from tests.helpers.saved import save
from tests.helpers.tiny import make_tiny, make_tiny_language, make_tiny_sentences

SEQUENTIAL = dict(layers=2, share=1, solver="lie_trotter")


def shaken(tree, seed):
    """A tree of parameters with noise on each, so that no part is without effect."""
    rng = np.random.default_rng(seed)
    noise = lambda x: np.asarray(x) + rng.normal(0, 0.1, x.shape).astype(x.dtype)
    return jax.tree.map(lambda x: jax.device_put(noise(x), x.sharding), tree)


def _shaken(state):
    averaged = None if state.ema is None else shaken(state.ema, 1)
    return state.replace(params=shaken(state.params, 0), ema=averaged)


@pytest.fixture(scope="session")
def runs(tmp_path_factory, opinions_dir):
    """The folder of the workdirs, each named for its task.

    The one of images has two checkpoints, with an average each, of which the first is better.
    """
    folder = tmp_path_factory.mktemp("runs")
    images = make_tiny()
    images.depth.update(SEQUENTIAL)
    images.model.pool = "token"
    images.optimizer.ema_decay = 0.9

    language = make_tiny_language()
    language.depth.update(SEQUENTIAL)
    language.data.packing = "documents"
    language.model.positions = "learned"
    language.optimizer.ema_decay = None

    save(images, folder / "images", _shaken, scores=[{"val/loss": 0.1}, {"val/loss": 0.5}])
    save(language, folder / "language", _shaken)
    save(make_tiny_sentences(opinions_dir), folder / "sentences", _shaken)

    images.init.path, images.lora = str(folder / "images"), dict(rank=2, alpha=4.0)
    save(images, folder / "adapted", _shaken)
    return folder
