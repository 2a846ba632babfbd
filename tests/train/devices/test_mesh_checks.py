"""The mesh: axes whose size is left open, and what is refused."""

import jax
import pytest

from tests.helpers.tiny import make_tiny
from train.config.border import from_config_dict
from train.config.run import MeshConfig
from train.devices.checks import check_run_fits
from train.devices.mesh import device_mesh
from train.errors import BadInput


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((1, 1, 8), (1, 1, 8))],
)
def test_an_open_axis_takes_what_is_left(sizes, shape):
    devices = jax.devices() * 8  # the same one, eight times: it is laid out, not used
    assert tuple(device_mesh(MeshConfig(*sizes), devices).shape.values()) == shape


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1), r"\(data=3 x fsdp=1 x tensor=1\) does not fit the 1 devices"),
        ((-1, 2, 1), "product divides 1"),
        ((-1, -1, 1), "leaves several axes open"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, message):
    with pytest.raises(BadInput, match=message):
        device_mesh(MeshConfig(*sizes))


@pytest.mark.parametrize(
    ("changes", "mesh", "message"),
    [
        ({"batch_size": 36}, dict(data=8), "batch_size=36 does not divide .* multiple of 8"),
        ({"parallel.accumulate": 3}, dict(data=2), "accumulate=3 .* multiple of 6"),
        ({"model.heads": 1}, dict(tensor=2), "model.heads=1 does not divide over mesh.tensor=2"),
        (
            {"model.heads": 4, "model.kv_heads": 1},
            dict(tensor=2),
            "model.kv_heads=1 does not divide over mesh.tensor=2 .* part of a head of keys and",
        ),
        ({"model.mlp": 31}, dict(tensor=2), "model.mlp=31 .* divisors of 31"),
        ({}, dict(fsdp=32), "model.width=16 does not divide over mesh.fsdp=32"),
        ({"model.fused": True}, dict(tensor=2), "fused=True joins kernels"),
        ({"parallel.mode": "shard_map"}, dict(fsdp=2), "replicas of the model"),
        ({"parallel.mode": "shard_map"}, dict(tensor=2), "mesh.tensor=2 were given"),
        (
            {"parallel.mode": "shard_map", "depth.adjoint": "recursive"},
            dict(data=2),
            "adjoint='recursive' has no gradient under",
        ),
    ],
)
def test_a_run_that_does_not_fit_its_mesh_is_refused(changes, mesh, message):
    cfg = make_tiny()
    cfg.batch_size = 32
    cfg.update_from_flattened_dict(changes)
    sizes = dict(data=1, fsdp=1, tensor=1) | mesh
    shape = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
    with pytest.raises(BadInput, match=message):
        check_run_fits(from_config_dict(cfg), shape)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh.fsdp": 0}, "config.mesh.fsdp is 1 or more, or -1"),
        ({"parallel.mode": "pmap"}, "config.parallel.mode is one of jit, shard_map; pmap"),
        ({"parallel.accumulate": 0}, "config.parallel.accumulate is greater than 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    cfg = make_tiny()
    cfg.update_from_flattened_dict(changes)
    with pytest.raises(BadInput, match=message):
        from_config_dict(cfg)
