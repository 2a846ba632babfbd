"""Checksums: they see any change, and are the same however the arrays lie on the devices."""

import dataclasses
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.helpers.tiny import make_tiny
from train.checkpoint.checksums import checksums
from train.checkpoint.metadata import Damaged, read_metadata
from train.checkpoint.restore import restore_step
from train.checkpoint.saver import Saver
from train.config.border import from_config_dict
from train.config.run import MeshConfig
from train.data.pipeline import Position
from train.devices.mesh import device_mesh
from train.optimizer import make_optimizer
from train.state import abstract_state, init_state

DTYPES = ["float32", "bfloat16", "float16", "int32", "uint8", "int8", "bool"]
WIDE = ["float64", "int64"]


def put(tree):
    mesh = device_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def checksum(array):
    return checksums({"x": put(array)})["x"]


def mixed(x):
    """MurmurHash3's last step, on numbers below 2^32 in 64 bits."""
    x = (x ^ (x >> np.uint64(16))) * np.uint64(0x85EBCA6B) % np.uint64(2**32)
    x = (x ^ (x >> np.uint64(13))) * np.uint64(0xC2B2AE35) % np.uint64(2**32)
    return x ^ (x >> np.uint64(16))


def reference(array):
    """The formula, word by word of the array's bytes, in integers modulo 2^32."""
    size = array.dtype.itemsize
    words = np.frombuffer(array.tobytes(), f"uint{min(8 * size, 32)}").astype(np.uint64)
    h = mixed(np.arange(len(words), dtype=np.uint64))
    a = mixed(words * (2 * h + np.uint64(1)) % np.uint64(2**32)).sum() % np.uint64(2**32)
    b = mixed((words + h) % np.uint64(2**32)).sum() % np.uint64(2**32)
    return f"{int(a):08x}{int(b):08x}"


def random_array(dtype, shape, seed=0):
    """Any bits at all, NaNs of every kind among them; of a bool, 0 and 1."""
    dtype = np.dtype(jnp.dtype(dtype))
    content = np.random.default_rng(seed).bytes(int(np.prod(shape)) * dtype.itemsize)
    if dtype.kind == "b":
        return np.frombuffer(content, np.uint8).reshape(shape) % 2 == 1
    return np.frombuffer(content, dtype).reshape(shape)


def check_formula(dtype):
    shapes = [(), (1,), (0,), (0, 3), (5,), (3, 4), (2, 1, 3, 2)]
    arrays = {str(shape): random_array(dtype, shape) for shape in shapes}
    assert checksums(put(arrays)) == {name: reference(array) for name, array in arrays.items()}


def check_bits(dtype):
    """Each bit of an array, flipped alone: no two of all these have the same checksum."""
    array = random_array(dtype, (2, 3), seed=1)
    bits = range(0, 8 * array.nbytes, 8 if dtype == "bool" else 1)
    flipped = [array]
    for bit in bits:
        content = bytearray(array.tobytes())
        content[bit // 8] ^= 1 << bit % 8
        flipped.append(np.frombuffer(bytes(content), array.dtype).reshape(array.shape))
    assert len({checksum(array) for array in flipped}) == len(flipped)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_formula_and_every_bit(dtype):
    check_formula(dtype)
    check_bits(dtype)


@pytest.mark.parametrize("dtype", WIDE)
def test_the_formula_and_every_bit_of_64(dtype, float64):
    check_formula(dtype)
    check_bits(dtype)


def test_changes_of_two_entries():
    """Exchanged, or their signs changed: the sums of changes that would cancel do not."""
    array = random_array("float32", (16,), seed=2)
    changed = [array]
    for i in range(len(array)):
        for j in range(i):
            swapped, signs = array.copy(), array.copy()
            swapped[[i, j]] = swapped[[j, i]]
            signs.view(np.uint32)[[i, j]] ^= np.uint32(1 << 31)
            changed += [swapped, signs]
    found = {checksum(x) for x in changed}
    assert len(found) == len(changed)
    for half in (slice(8), slice(8, 16)):  # each of the two sums sees them by itself
        assert len({x[half] for x in found}) == len(found)


def test_numbers_that_compare_alike():
    zeros = [np.float32([0.0]), np.float32([-0.0])]
    nans = [
        np.frombuffer(struct.pack("<I", x), np.float32)
        for x in (0x7FC00000, 0x7FC00001, 0xFFC00000)
    ]
    tiny = [
        np.frombuffer(struct.pack("<I", x), np.float32) for x in (1, 2)
    ]  # below the normal ones
    found = [checksum(x) for x in zeros + nans + tiny]
    assert len(set(found)) == len(found)
    assert found == [reference(x) for x in zeros + nans + tiny]


def test_leaves_that_are_exchanged():
    a, b = (random_array("float32", (2, 3), seed) for seed in (3, 4))
    here, there = checksums(put({"a": a, "b": b})), checksums(put({"a": b, "b": a}))
    assert here["a"] == there["b"] != here["b"] == there["a"]
    assert checksum(a) != checksum(np.ascontiguousarray(a.T))


def test_every_array_of_a_state_is_compared(workdir):
    """Weights, optimiser, average and counts: with other checksums each of them is wrong."""
    config = from_config_dict(make_tiny())
    optimizer, mesh = make_optimizer(config.optimizer, config.train_steps), device_mesh(config.mesh)
    target = abstract_state(config, optimizer, mesh)
    with Saver(workdir, config, examples=1) as saver:
        saver.save(init_state(config, optimizer, mesh), Position(1, 0), {}, wait=True)

    metadata = read_metadata(workdir, 1)
    (file,) = workdir.glob("checkpoints/1/*/record.json")
    assert len(metadata.leaves) == len(jax.tree.leaves(target))
    for part in ("step", "params", "opt_state", "ema", "guard"):
        others = {
            name: dataclasses.replace(leaf, checksum=f"{int(leaf.checksum, 16) ^ 1:016x}")
            for name, leaf in metadata.leaves.items()
            if name.split("/")[0] == part
        }
        changed = dataclasses.replace(metadata, leaves=metadata.leaves | others)
        file.write_text(json.dumps(changed.to_json()))
        with pytest.raises(Damaged, match=f"^{len(others)} of its arrays .* {part}.* is the first"):
            restore_step(workdir, 1, target)

    file.write_text(json.dumps(metadata.to_json()))
    restore_step(workdir, 1, target)


def test_checksums_without_jit():
    """As JAX_DISABLE_JIT leaves them, arrays lie on a device and know no mesh."""
    arrays = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.arange(3)}
    expected = checksums(put(arrays))
    with jax.disable_jit():
        assert checksums(arrays) == expected
    assert checksums(arrays) == expected
