"""Weights are read tensor by tensor, and born where they lie: memory, meshes, what is refused."""

import jax
import numpy as np
import pytest

from odeformer import LMConfig, presets
from odeformer.interop import load_pretrained
from odeformer.interop.mesh_checks import check_divided
from tests.helpers.checkout import ROOT
from tests.helpers.loading import load, write_large

DATA = ROOT / "tests" / "data" / "interop"
SEQUENTIAL = {"layers": 3, "solver": "lie_trotter"}


def check_shares(found, devices):
    """Each device holds its part of what is split, and what is replicated."""
    share = (found["bytes"] - found["replicated"]) / devices + found["replicated"]
    assert set(found["devices"].values()) == {share}


def test_eight_devices_hold_an_eighth_each(tmp_path):
    config = LMConfig(64, 32, width=32, heads=4, mlp=64, positions="learned", depth=SEQUENTIAL)
    write_large(tmp_path, config)
    found = load(tmp_path, "bfloat16", devices=8)
    check_shares(found, 8)
    assert found["replicated"] < 0.2 * found["bytes"]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "devices"), [("bfloat16", 1), ("float32", 1), ("bfloat16", 8)])
def test_a_large_model_is_there_once(large, dtype, devices):
    """On the host, too: what is read and not yet written is small."""
    folder, size = large
    found = load(folder, dtype, devices)
    assert found["bytes"] > 2.4e9 and found["peak"] - found["bytes"] < 0.3 * size
    check_shares(found, devices)
    assert found["replicated"] < 0.001 * found["bytes"] or devices == 1


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    config = presets.lm("gpt_1b", positions="learned", depth={"solver": "lie_trotter"})
    return folder, write_large(folder, config)


def test_rules_place_the_parameters_of_an_image_model():
    """On a mesh of one device: which axes a mesh of more would split."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tensor"))
    rules = [("width", "fsdp"), ("heads", ("tensor",)), ("mlp", "tensor")]
    _, variables = load_pretrained(DATA / "dinov2", mesh=mesh, rules=rules)
    _, plain = load_pretrained(DATA / "dinov2")
    jax.tree.map(np.testing.assert_array_equal, variables, plain)

    groups = variables["params"]["depth"]["groups"]
    specs = jax.tree.map(lambda x: tuple(x.sharding.spec), groups)
    assert specs["attention_layer"]["qkv"]["kernel"] == (None, "fsdp", None, "tensor", None)
    assert specs["mlp_layer"]["down"]["kernel"] == (None, "tensor", "fsdp")
    assert not any(specs["mlp_scale"]["gamma"])


@pytest.mark.parametrize(
    ("mesh", "rules", "message"),
    [
        (None, {"width": "fsdp"}, "rules= was given without mesh="),
        ("one", None, "mesh= was given without rules="),
        ("fsdp", {}, "mesh is a jax.sharding.Mesh; 'fsdp' was given"),
        ("one", {"width": "model"}, "'width' names the axis 'model' of the mesh, whose axes"),
        ("one", [("mlp", ("fsdp", "x"))], "names the axis 'x' of the mesh, whose .* fsdp"),
    ],
)
def test_a_mesh_and_rules_that_do_not_fit(mesh, rules, message):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("fsdp",)) if mesh == "one" else mesh
    with pytest.raises(ValueError, match=message):
        load_pretrained(DATA / "dinov2", mesh=mesh, rules=rules)


def test_an_axis_that_the_mesh_does_not_divide():
    mesh = jax.sharding.AbstractMesh((5,), ("fsdp",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp"))
    check_divided("head/kernel", (3, 10), sharding)
    with pytest.raises(
        ValueError, match=r"head/kernel .*\[3, 8\], of which 8 does not divide over"
    ):
        check_divided("head/kernel", (3, 8), sharding)
