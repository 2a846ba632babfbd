"""Programs that are started as processes of their own, and what they end with."""

import io
import os
import random
import socket
import subprocess
import sys

import numpy as np

from tests.helpers.checkout import ROOT

TINY = [
    "--config=configs/digits.py",
    "--config.train_steps=3",
    "--config.batch_size=32",
    "--config.optimizer.warmup_steps=1",
    "--config.model.width=16",
    "--config.model.heads=2",
    "--config.model.mlp=32",
    "--config.model.dropout=0.1",
    "--config.model.drop_path=0.1",
    "--config.depth.layers=1",
    "--config.depth.share=1",
    "--config.depth.solver=euler",
    "--config.log.every_steps=1",
    "--config.eval.every_steps=3",
    "--config.checkpoint.every_steps=3",
]

PORTS = iter(random.SystemRandom().sample(range(20_000, 32_000), 1000))  # none is given out twice


def free_port():
    """A port that nothing listens on, below those that the system gives to connections."""
    for port in PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no free port")


def launch(devices, *command):
    """Starts a Python program on that many devices of the CPU."""
    flags = "--xla_cpu_collective_call_terminate_timeout_seconds=300"
    environ = os.environ | {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
    }
    command = [sys.executable, *map(str, command)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environ, text=True, stdout=pipe, stderr=pipe)


def finish(process):
    """Waits for a program, and returns (exit code, standard output, standard error)."""
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    lines = [line for line in out.splitlines() if not line.startswith("[Gloo]")]  # C++ prints them
    return process.returncode, "\n".join(lines), err


def launch_both(workdir, *arguments):
    """Starts two processes of four devices that train one run."""
    group = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
    command = ["-m", "train", *TINY, f"--workdir={workdir}", *arguments, *group]
    return [launch(4, *command, f"--process_id={process}") for process in range(2)]


def restored(folder, workdir, both):
    """The state of a run's newest checkpoint, restored by one process of 8 devices, or by two."""
    output = folder / "state.npz"
    command = [ROOT / "tests/helpers/restore.py", workdir, output, 8]
    group = [f"127.0.0.1:{free_port()}", 2]
    started = [launch(4, *command, *group, i) for i in (0, 1)] if both else [launch(8, *command)]
    for code, _, err in map(finish, started):
        assert code == 0, err
    return dict(np.load(io.BytesIO(output.read_bytes())))
