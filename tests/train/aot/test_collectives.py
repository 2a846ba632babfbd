"""What the chips of a TPU slice tell one another in a train step, read off the compiled program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from configs import digits, pydocs
from train.aot import topologies
from train.aot.report import make_report
from train.config.border import from_config_dict

pytestmark = pytest.mark.tpu

GROUPS, STEPS, WIDTH, MLP, HEADS, BLOCK, BATCH = 3, 2, 1024, 2048, 8, 128, 64
KERNELS = 4 * WIDTH * WIDTH + 2 * WIDTH * MLP  # entries of one group's
REMATERIALIZATION = "nvoluntary full rematerialization"
LAYOUTS = {
    "data": dict(data=16),
    "fsdp": dict(data=2, fsdp=8),
    "tensor": dict(data=4, tensor=4),
    "all": dict(data=2, fsdp=4, tensor=2),
}


@pytest.fixture(scope="module", autouse=True)
def compiler_that_warns():
    """libtpu reads its log levels once, when it is loaded."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TF_CPP_MIN_LOG_LEVEL", "TPU_MIN_LOG_LEVEL", "TPU_STDERR_LOG_LEVEL"):
            patch.setitem(topologies._ENVIRONMENT, name, "0")
        yield


@functools.cache
def report(layout):
    """What the program takes of a chip, four stages and two steps a group."""
    cfg = pydocs.get_config()
    cfg.batch_size = BATCH
    cfg.model.update(vocabulary=1024, block_size=BLOCK, width=WIDTH, heads=HEADS, mlp=MLP)
    cfg.model.dtype = "bfloat16"
    cfg.depth.update(layers=GROUPS * STEPS, share=STEPS, solver="rk4", adjoint="checkpoint")
    cfg.mesh.update(dict(data=1, fsdp=1, tensor=1) | LAYOUTS[layout])
    return make_report(from_config_dict(cfg), "x", "v5e:4x4")


def table(report):
    """How often, and how many bytes, by kind and place."""
    return {(one["kind"], one["place"]): (one["count"], one["bytes"]) for one in report.collectives}


# (kind, place): how often, and how many bytes a chip. Kernels are gathered in bfloat16, and their
# gradients added up in float32.
TABLE = {
    "data": {
        ("all-reduce", "step"): (2, 4_202_508),
        ("all-reduce", "scan over groups"): (3, 100_798_464),
    },
    "fsdp": {
        ("all-gather", "step"): (1, 4_194_304),
        ("all-reduce", "step"): (4, 4_202_548),
        ("all-gather", "scan over groups"): (24, 100_663_296),
        ("all-reduce", "scan over groups"): (6, 12_718_080),
        ("reduce-scatter", "scan over groups"): (12, 100_663_296),
    },
    "tensor": {
        ("all-gather", "step"): (2, 65_536),
        ("all-reduce", "step"): (7, 17_850_436),
        ("all-reduce", "scan over groups"): (3, 25_254_912),
        ("all-reduce", "solver's loop"): (66, 553_648_128),
    },
    "all": {
        ("all-gather", "step"): (3, 2_113_536),
        ("all-reduce", "step"): (13, 10_502_252),
        ("all-gather", "scan over groups"): (24, 50_331_648),
        ("all-reduce", "scan over groups"): (6, 12_687_360),
        ("reduce-scatter", "scan over groups"): (12, 50_331_648),
        ("all-reduce", "solver's loop"): (66, 276_824_064),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_literal_table(layout, capfd):
    """How often a kernel is gathered does not depend on the steps, nor on the stages."""
    made = table(report(layout))
    assert REMATERIALIZATION not in capfd.readouterr().err
    assert made == TABLE[layout], f"to renew the table, put {made} into it"


def test_kernels_are_gathered_once_forwards_and_once_backwards():
    made = table(report("fsdp"))
    assert made["all-gather", "scan over groups"][1] == 2 * GROUPS * KERNELS * 2
    scattered = made["reduce-scatter", "scan over groups"]
    assert scattered == (4 * GROUPS, GROUPS * KERNELS * 4)


def test_shards_by_themselves_meet_once():
    """Adaptive steps, each shard its own."""
    cfg = digits.get_config()
    cfg.depth.update(solver="tsit5", rtol=1e-3)
    cfg.parallel.mode = "shard_map"
    made = make_report(from_config_dict(cfg), "digits", "v5e:4x4")
    assert {one["place"] for one in made.collectives} == {"step"}
    gradient = max(one["bytes"] for one in made.collectives if one["kind"] == "all-reduce")
    assert gradient >= made.parameter_bytes


def test_a_rematerialization_would_be_seen(compiler_that_warns, capfd):
    devices = topologies.slice_devices("v5e:4x4")
    mesh = Mesh(np.array(devices).reshape(4, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

    def look_up(table, tokens):
        rows = jnp.take(table, tokens, axis=0)
        return jax.lax.with_sharding_constraint(rows, NamedSharding(mesh, PartitionSpec("b")))

    def shaped(shape, dtype, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    inputs = shaped((512, 512), "float32", None, ("b", "a")), shaped((64, 64), "int32", ("a", "b"))
    jax.jit(look_up).trace(*inputs).lower(lowering_platforms=("tpu",)).compile()
    assert REMATERIALIZATION in capfd.readouterr().err
