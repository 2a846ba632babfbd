"""Arrays that orbax stored: what a read of them that fails leaves behind."""

import asyncio
import shutil

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from etils import epath

from train.checkpoint.arrays import read_arrays


def test_a_read_that_fails_ends_all_that_it_began(tmp_path, monkeypatch):
    """What is left of it would print a traceback for each array."""
    arrays = {f"{i}": jax.random.normal(jax.random.key(i), (50, 50)) for i in range(40)}
    folder = epath.Path(tmp_path) / "state"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, arrays)
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arrays
    )
    found = read_arrays(folder, target)
    assert all(jnp.array_equal(found[name], array) for name, array in arrays.items())
    shutil.rmtree(folder / "d")  # of the names
    left, close = [], asyncio.SelectorEventLoop.close

    def spying(loop):
        left.append(len(asyncio.all_tasks(loop)))
        close(loop)

    monkeypatch.setattr(asyncio.SelectorEventLoop, "close", spying)
    policy = asyncio.get_event_loop_policy()
    with pytest.raises(Exception, match="NOT_FOUND"):
        read_arrays(folder, target)
    assert left and not any(left)
    assert asyncio.get_event_loop_policy() is policy
