"""What adapters are trained of: a run, a run of adapters, a pretrained model."""

from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from odeformer.interop import load_config, load_pretrained
from tests.helpers.adapted import make_adapted
from tests.helpers.checkout import ROOT
from tests.helpers.saved import save, shaken
from train.adapters import abstract_base, split_head
from train.checkpoint import load_model
from train.checkpoint.initial import load_initial
from train.checkpoint.weights import read_base
from train.checkpoint.workdir import record_run
from train.config.border import from_config_dict
from train.data.sources import load_splits
from train.devices.mesh import one_device_mesh
from train.errors import BadInput
from train.optimizer import make_optimizer
from train.state import init_state


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("adapted") / "run"
    save(make_adapted(base), workdir, shaken)
    return workdir


VIT = ROOT / "tests" / "data" / "interop" / "vit"


@pytest.mark.parametrize("size", [[8, 8], [12, 20]])
def test_a_pretrained_model_is_adapted(size):
    """By its folder; at another size its positions are resampled, and the digest is the same."""
    there: Any = load_config(VIT)
    names = ("patch_size", "channels", "width", "heads", "mlp", "pool", "activation")
    changes = {f"model.{name}": getattr(there, name) for name in names}
    changes |= {"model.norm_epsilon": there.norm_epsilon, "model.image_size": size}
    changes |= {"depth.solver": "lie_trotter", "model.classes": 5, "lora.targets": ()}
    config = from_config_dict(make_adapted(VIT), changes)
    mesh = one_device_mesh()
    found = read_base(config, mesh)
    assert found is not None and found.head is None and not found.is_run
    assert set(found.initial.new) == {"head/kernel", "head/bias"}

    _, variables = load_pretrained(VIT, image_size=tuple(size))
    _, expected = split_head(config, variables["params"])
    jax.tree.map(np.testing.assert_array_equal, found.params, expected)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_base(config, mesh))
    assert jax.tree.map(lambda leaf: leaf.sharding, found.params) == shardings


def test_another_run_can_begin_with_adapted_weights(adapted, base, tmp_path):
    """They are merged: both by a run without adapters, and by one with others, at any size."""
    merged = load_model(adapted)[1]["params"]
    cfg = make_adapted()
    cfg.init.path = str(adapted)
    config, mesh = from_config_dict(cfg), one_device_mesh()
    optimizer = make_optimizer(config.optimizer, config.train_steps)
    state, initial = load_initial(
        epath.Path(tmp_path), config, optimizer, mesh, init_state(config, optimizer, mesh)
    )
    jax.tree.map(np.testing.assert_array_equal, state.params, merged)
    assert initial.step == 1

    twice = read_base(from_config_dict(make_adapted(adapted)), mesh)
    assert twice is not None and twice.head is not None
    found = {**twice.params, **twice.head}
    jax.tree.map(np.testing.assert_array_equal, found, merged)

    # The digest is that of what was read, not of what a device resampled.
    small, large = (
        read_base(from_config_dict(make_adapted(base), {"model.image_size": size}), mesh)
        for size in (8, 12)
    )
    assert small is not None and large is not None and small.digest == large.digest
    assert large.initial.resampled == {"positions": "resampled from 4 x 4 patches to 6 x 6"}


def test_runs_that_adapt_each_other_are_refused(tmp_path):
    """As folders that were exchanged."""
    data = load_splits(from_config_dict(make_adapted()))["train"]
    for name, other in ("ab", "ba"):
        config = from_config_dict(make_adapted(tmp_path / other))
        record_run(epath.Path(tmp_path / name), config, data)
    with pytest.raises(BadInput, match=r"these runs adapt each other: .*/a, .*/b; give the path"):
        read_base(from_config_dict(make_adapted(tmp_path / "a")), one_device_mesh())
