"""Loads a folder of weights in a process of its own, and prints what that took and where it lies.

    python tests/helpers/loading.py FOLDER DTYPE DEVICES

DEVICES of the CPU, over which the width is split as fsdp does; 1: no mesh. `write_large` writes
such a folder, a large one too, layer by layer.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np

from tests.helpers.checkout import ROOT


def load(folder, dtype, devices):
    """What the program prints: bytes of all arrays, by device, by leaf that is split; the peak."""
    command = [sys.executable, str(pathlib.Path(__file__)), str(folder), dtype, str(devices)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def write_large(folder, config):
    """Writes a language model of random bfloat16 values, a shard per layer; returns its size."""
    from safetensors.numpy import save_file

    from odeformer.interop import gpt2
    from odeformer.interop.layout import tensors_of
    from odeformer.interop.weights import INDEX

    rng = np.random.default_rng(0)
    shapes = tensors_of(gpt2.layout(config), config.depth.layers)
    parts, places = {}, {}
    for name in shapes:
        part = name.split(".h.")[1].split(".")[0] if ".h." in name else name
        parts.setdefault(f"model-{part}.safetensors", []).append(name)

    for file, names in parts.items():
        save_file({name: _bfloat16(rng, shapes[name]) for name in names}, folder / file)
        places |= dict.fromkeys(names, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps(gpt2.write(config)))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _bfloat16(rng, shape):
    import ml_dtypes

    # Any 16 bits without the exponent's highest: finite, between -2 and 2.
    bits = np.frombuffer(rng.bytes(2 * int(np.prod(shape))), np.uint16) & 0xBFFF
    return bits.view(ml_dtypes.bfloat16).reshape(shape)


def _main(folder, dtype, devices):
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    from odeformer.interop import load_pretrained

    options = {}
    if devices > 1:
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("fsdp",))
        options = dict(mesh=mesh, rules={"width": "fsdp", "heads": None})
    _, variables = load_pretrained(folder, param_dtype=dtype, **options)
    peak = next(
        1024 * int(line.split()[1])
        for line in pathlib.Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )

    leaves = jax.tree_util.tree_leaves_with_path(variables)
    by_device = dict.fromkeys(map(str, jax.devices()), 0)
    for _, leaf in leaves:
        for shard in leaf.addressable_shards:
            by_device[str(shard.device)] += shard.data.nbytes
    found = {
        "bytes": sum(leaf.nbytes for _, leaf in leaves),
        "replicated": sum(leaf.nbytes for _, leaf in leaves if leaf.is_fully_replicated),
        "devices": by_device,
        "peak": peak,
    }

    # What lies on devices is what one device would hold, and of the dtype that was asked for.
    if found["bytes"] < 1 << 26:
        _, plain = load_pretrained(folder, param_dtype=dtype)
        jax.tree.map(np.testing.assert_array_equal, variables, plain)
    assert {leaf.dtype.name for _, leaf in leaves} == {dtype}
    print(json.dumps(found))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
