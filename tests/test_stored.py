"""Arrays that orbax stored: what a read of them that fails prints."""

import gc
import logging
import shutil

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from etils import epath

from train.checkpoint.arrays import read_arrays


def test_a_failed_read_prints_no_traceback_of_each_array(tmp_path, caplog, capfd):
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
    with pytest.raises(Exception, match="NOT_FOUND") as failed:
        read_arrays(folder, target)
    del failed  # and with it the frames that hold what was dropped
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []
    assert "Traceback" not in capfd.readouterr().err
    assert logging.getLogger("asyncio").level == logging.NOTSET
