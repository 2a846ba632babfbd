"""Trains tiny runs on eight CPU devices, one for each case of argv[1]; prints what came of them.

A case is {"kind": "images", "depth": {...}, "mesh": {...}, "width": 16, "devices": 8, "steps": 10},
with any groups of a config's keys, and each of these can be left out; what is printed is a JSON
list, an entry for each.
"""

import json
import os
import pathlib
import sys
import tempfile

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    " --xla_cpu_collective_call_terminate_timeout_seconds=300"
)
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # this checkout, whatever is installed

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from odeformer import make_model, terms
from tests.helpers.terms import gates
from tests.helpers.tiny import make_tiny, make_tiny_language
from tests.helpers.trees import relative_error
from train.adapters import abstract_base, split_head
from train.aot import compiled
from train.checkpoint.checksums import checksums
from train.checkpoint.initial import load_initial
from train.checkpoint.restore import restore_step
from train.checkpoint.saver import Saver
from train.checkpoint.transfer import find_source
from train.checkpoint.weights import read_weights
from train.config.border import from_config_dict
from train.config.run import MeshConfig
from train.data.pipeline import Position, train_batches
from train.data.sources import load_splits
from train.devices.checks import check_run_fits
from train.devices.mesh import device_mesh, on_mesh, put_batch
from train.gradient import make_gradient
from train.optimizer import make_optimizer
from train.state import abstract_state, init_state, jit_init
from train.step import lower_train_step, make_train_step
from train.tasks import make_task

ONE = dict(data=1, fsdp=1, tensor=1)
terms.register("gates", gates())


def configure(kind="images", width=16, **groups):
    """A tiny config, with dropout and drop-path, and without augmentation."""
    if kind == "images":
        cfg = make_tiny()
        cfg.data.augment.update(shift_px=0.0, rotate_degrees=0.0, zoom=0.0)
    else:
        cfg = make_tiny_language()
        cfg.model.update(dict(tied=False, positions="learned") if kind == "untied" else {})
    cfg.train_steps, cfg.batch_size = 10, 16
    cfg.model.update(width=width, heads=4, mlp=2 * width)
    cfg.depth.update(layers=4, share=2)
    cfg.mesh.update(ONE)
    for name, values in groups.items():
        cfg[name].update(values)
    if groups.get("lora"):
        cfg.init.path = "/of/no/run"
    return from_config_dict(cfg)


def shardings(tree):
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def case(devices=8, steps=10, **changes):
    """Trains; returns the losses, and whether the state lies as before."""
    config = configure(**changes)
    mesh = device_mesh(config.mesh, jax.devices()[:devices])
    check_run_fits(config, mesh)
    data = load_splits(config)["train"]
    optimizer = make_optimizer(config.optimizer, config.train_steps, config.model.depth.layers)
    state = init_state(config, optimizer, mesh)
    before = shardings(state)
    step = make_train_step(
        config, optimizer, make_task(config, data), mesh, base=base_of(changes, config, mesh)
    )
    losses, norms = [], []
    for batch in train_batches(data, config.batch_size, steps, config.seed):
        state, metrics = step(state, put_batch(mesh, batch, config.batch_size))
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
        assert float(metrics["failed_solves"]) == 0
    return dict(losses=losses, norms=norms, kept=shardings(state) == before)


def base_of(changes, config, mesh):
    """The first weights of the same run without adapters, which it then adapts."""
    if config.lora.rank is None:
        return None
    plain = configure(**{name: value for name, value in changes.items() if name != "lora"})
    params = init_state(plain, make_optimizer(plain.optimizer, plain.train_steps), mesh).params
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_base(config, mesh))
    return jax.device_put(split_head(config, params)[1], shardings)


def padded():
    """A batch of text whose first half is mostly padding, whole and by two shards on their own.

    Returns the loss of each, and the distance of their gradients over the norm of the first.
    """
    losses, gradients = [], []
    for mode, devices in (("jit", 1), ("shard_map", 2)):
        config = configure(
            kind="language",
            depth=dict(solver="euler"),
            regularise=dict(kinetic=0.5, end_time=0.5),
            mesh=dict(data=devices),
            parallel=dict(mode=mode),
        )
        mesh = device_mesh(config.mesh, jax.devices()[:devices])
        data = load_splits(config)["train"]
        task = make_task(config, data)
        batch = next(train_batches(data, config.batch_size, 1, config.seed))
        batch["segments"][: config.batch_size // 2, 5:] = 0  # the first shard's
        batch = put_batch(mesh, batch, config.batch_size)

        optimizer = make_optimizer(config.optimizer, config.train_steps)
        params = init_state(config, optimizer, mesh).params
        gradient = jax.jit(make_gradient(config, task))
        with on_mesh(mesh, config.model):
            inputs, targets = task.prepare(batch, None, {})
            found, metrics = gradient(params, inputs, targets, jax.random.key(2))
        losses.append(float(metrics["loss"]))
        gradients.append(jax.device_get(found))
    return dict(losses=losses, distance=relative_error(*gradients[::-1]))


def traffic():
    """What a step's devices send inside its loops, [kind, loops around it, bytes] each."""
    mesh = dict(data=2, fsdp=2, tensor=2)
    config = configure(depth=dict(solver="midpoint"), mesh=mesh)
    data = load_splits(config)["train"]
    batch = next(train_batches(data, config.batch_size, 1, config.seed))
    optimizer, mesh = make_optimizer(config.optimizer, config.train_steps), device_mesh(config.mesh)
    lowered = lower_train_step(config, optimizer, make_task(config, data), mesh, batch)
    found = compiled.summarise(compiled.collectives(lowered.compile().as_text()))
    return [[one.kind, one.depth, one.bytes] for one in found if one.depth]


def memory():
    """Bytes of a whole state, and what a device holds while it is made on eight."""
    config = configure(mesh=dict(fsdp=8), width=128)
    mesh = device_mesh(config.mesh)
    optimizer = make_optimizer(config.optimizer, config.train_steps)
    whole = sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract_state(config, optimizer, mesh))
    )
    compiled = jit_init(config, optimizer, mesh).lower(np.uint32(0)).compile()
    analysis = compiled.memory_analysis()
    return dict(
        whole=whole, made=analysis.output_size_in_bytes, temporary=analysis.temp_size_in_bytes
    )


def checkpoint():
    """Saves under one layout and restores under others: whether every array is the same."""
    split, whole, mixed = (dict(fsdp=8), 8), (ONE, 1), (dict(data=2, fsdp=2, tensor=2), 8)
    same = []
    for (save_mesh, save_devices), layouts in ((split, (whole, mixed)), (whole, (split,))):
        config = configure(mesh=save_mesh)
        optimizer = make_optimizer(config.optimizer, config.train_steps)
        state = init_state(
            config, optimizer, device_mesh(config.mesh, jax.devices()[:save_devices])
        )
        with tempfile.TemporaryDirectory() as folder:
            workdir = epath.Path(folder)
            (workdir / "config.json").write_text("{}")  # else it counts as vanished
            with Saver(workdir, config, examples=1) as saver:
                saver.save(state, Position(1, 0), {}, wait=True)
            for mesh, devices in layouts:
                other = configure(mesh=mesh)
                target = abstract_state(
                    other, optimizer, device_mesh(other.mesh, jax.devices()[:devices])
                )
                restored, _ = restore_step(workdir, 1, target)
                assert shardings(restored) == shardings(target)
                pairs = zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True)
                same.append(all(np.array_equal(a, b) for a, b in pairs))
    return same


def initial():
    """Begins with stored weights on one device and on eight: whether they are the same."""
    data = pathlib.Path(__file__).parents[1] / "data"
    run, published = make_tiny(), make_tiny()
    run.depth.solver, run.model.mlp = "heun", 16
    run.model.update(classes=4, image_size=12)
    run.init.path = str(data / "workdir_0")

    published.depth.update(layers=2, share=1, solver="lie_trotter")
    published.model.update(image_size=12, patch_size=4, channels=3, classes=3, pool="token")
    published.model.update(width=8, heads=2, mlp=12, activation="gelu", norm_epsilon=1e-12)
    published.init.path = str(data / "interop/vit")
    return [*_initial(run), *_initial(published)]


def _initial(cfg):
    states = []
    for sizes, devices in ((ONE, 1), (dict(data=2, fsdp=2, tensor=2), 8)):
        cfg.mesh.update(sizes)
        config = from_config_dict(cfg)
        mesh = device_mesh(config.mesh, jax.devices()[:devices])
        optimizer = make_optimizer(config.optimizer, config.train_steps)
        state = init_state(config, optimizer, mesh)
        before = shardings(state)
        weights, _ = read_weights(find_source(config), config, mesh)
        leaves = jax.tree.leaves(weights)
        assert all(set(leaf.sharding.device_set) == set(mesh.devices.flat) for leaf in leaves)
        state, _ = load_initial(epath.Path("/nowhere"), config, optimizer, mesh, state)
        assert shardings(state) == before
        states.append(jax.device_get(state))
    pairs = zip(*map(jax.tree.leaves, states), strict=True)
    return [bool(np.array_equal(a, b)) for a, b in pairs]


def sums():
    """The checksums of arrays of any bits, split over the devices in several ways."""
    rng, arrays = np.random.default_rng(0), {}
    for dtype in ("float32", "bfloat16", "int32", "uint8"):
        bits = rng.integers(0, 256, (16, 8, 4, jnp.dtype(dtype).itemsize), np.uint8)
        arrays[dtype] = bits.view(jnp.dtype(dtype))[..., 0]
    arrays |= {"bool": arrays["uint8"] > 127}
    sizes = [dict(data=8, fsdp=1, tensor=1), dict(data=2, fsdp=2, tensor=2)]
    layouts = [(device_mesh(MeshConfig(**ONE), jax.devices()[:1]), ())]
    for mesh in (device_mesh(MeshConfig(**size)) for size in sizes):
        layouts += [(mesh, axes) for axes in ((), ("data",), (None, "data"))]
        layouts += [(mesh, ("tensor", None, "fsdp")), (mesh, (("data", "fsdp", "tensor"),))]
    return [
        checksums(jax.device_put(arrays, NamedSharding(mesh, PartitionSpec(*axes))))
        for mesh, axes in layouts
    ]


def per_sample():
    """FLOPs of a device for a batch whose samples take adaptive steps of their own, on 1 and 8."""
    flops = []
    for devices in (1, 8):
        depth = dict(solver="tsit5", rtol=1e-3, per_sample=True)
        config = configure(depth=depth, mesh=dict(data=devices))
        mesh = device_mesh(config.mesh, jax.devices()[:devices])
        data = load_splits(config)["test"]
        optimizer = make_optimizer(config.optimizer, config.train_steps)
        params = init_state(config, optimizer, mesh).params
        batch = put_batch(mesh, data.gather(np.arange(64)), 64)
        with on_mesh(mesh, config.model):
            images = batch["image"].astype("float32")
            apply = jax.jit(make_model(config.model).apply)
            compiled = apply.lower({"params": params}, images).compile()
        flops.append(compiled.cost_analysis()["flops"])
    return flops


if __name__ == "__main__":
    extras = dict(
        memory=memory,
        checkpoint=checkpoint,
        initial=initial,
        sums=sums,
        per_sample=per_sample,
        padded=padded,
        traffic=traffic,
    )
    cases = json.loads(sys.argv[1])
    results = [extras[one]() if isinstance(one, str) else case(**one) for one in cases]
    print(json.dumps(results))
