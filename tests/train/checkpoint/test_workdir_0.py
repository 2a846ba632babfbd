"""A workdir of an earlier trainer: it is read bit for bit, and its run resumes.

tests/data/workdir_0 is a run of 12 steps that was stopped after step 6. It stays as it is, whatever
the trainer writes later. It was made with jax 0.10.2 and orbax 0.12.8; its lock and events were
removed, and the folder's own path cut out of the files commit_success.txt:

    cfg = make_tiny()
    cfg.train_steps, cfg.depth.solver = 12, "heun"
    cfg.model.update(mlp=16)
    cfg.checkpoint.update(every_steps=12, keep=1)
    cfg.eval.every_steps = 5

    def stopping(*args):  # at the evaluation of step 5: the run is saved at step 6
        signal.raise_signal(signal.SIGTERM)
        return score(*args)

    with patch("train.run.score", stopping), pytest.raises(Stopped):
        train(cfg, "tests/data/workdir_0")

workdir_0.json next to it holds the SHA-256 of the bytes of each array of the state that was saved
(np.asarray(leaf).tobytes(), by the leaf's path), and the losses of the same run, uninterrupted.
"""

import hashlib
import json
import shutil

import jax
import numpy as np
import pytest

from tests.helpers.checkout import ROOT
from train.checkpoint.checksums import leaf_name
from train.checkpoint.restore import restore_newest
from train.checkpoint.weights import load_model
from train.checkpoint.workdir import read_config, saved_steps
from train.config.names import STATE
from train.devices.mesh import device_mesh
from train.logs.metrics import read_metrics
from train.loop import train
from train.optimizer import make_optimizer
from train.state import abstract_state

DATA = ROOT / "tests" / "data"
EXPECTED = json.loads((DATA / "workdir_0.json").read_text())


@pytest.fixture
def workdir(tmp_path):
    """A copy, which may be written to."""
    return shutil.copytree(DATA / "workdir_0", tmp_path / "run")


def digests(tree):
    return {
        leaf_name(path): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_its_state_is_restored_bit_for_bit(workdir):
    config = read_config(workdir)
    optimizer, mesh = make_optimizer(config.optimizer, config.train_steps), device_mesh(config.mesh)
    state, metadata = restore_newest(workdir, abstract_state(config, optimizer, mesh))
    expected = {STATE.get(name, name): sha for name, sha in EXPECTED["sha256"].items()}
    assert digests(state) == expected
    assert metadata.position.step == int(state.step) == 6

    _, variables = load_model(workdir)
    average = {name: sha for name, sha in EXPECTED["sha256"].items() if name.startswith("ema/")}
    assert digests({"ema": variables["params"]}) == average


def test_its_run_resumes(workdir):
    before = read_metrics(workdir)
    last = train(read_config(workdir), workdir)
    lines = read_metrics(workdir)
    assert lines[: len(before)] == before and saved_steps(workdir)[-1] == 12
    assert last["step"] == 12 and 0 < last["test/loss"] < 3

    losses = {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
    assert list(losses) == list(range(1, 13))
    np.testing.assert_allclose(list(losses.values()), EXPECTED["train/loss"], rtol=1e-4)
