"""Restores a run's newest state over the processes it is started as, and writes it out whole.

python tests/helpers/restore.py WORKDIR OUTPUT.npz FSDP [COORDINATOR PROCESSES PROCESS]
"""

import dataclasses
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from train.checkpoint.restore import restore_newest
from train.checkpoint.workdir import read_config
from train.devices import processes
from train.devices.mesh import device_mesh
from train.optimizer import make_optimizer
from train.state import abstract_state

workdir, output, fsdp, *group = sys.argv[1:]
if group:
    processes.start(group[0], int(group[1]), int(group[2]))
config = read_config(workdir)
mesh = device_mesh(dataclasses.replace(config.mesh, data=-1, fsdp=int(fsdp)))
optimizer = make_optimizer(config.optimizer, config.train_steps)
restored = restore_newest(workdir, abstract_state(config, optimizer, mesh))
assert restored is not None
state, _ = restored
assert jax.tree.leaves(state.params)[0].sharding.mesh.size == jax.device_count() == 8
arrays = {
    jax.tree_util.keystr(path): multihost_utils.process_allgather(leaf, tiled=True)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
}
if processes.is_primary():
    np.savez(output, **arrays)
