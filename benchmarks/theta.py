"""Trains the digits with each basis of theta(t), and draws one weight of each over depth.

    python -m benchmarks.theta --out=docs/theta.svg

Eight layers under `midpoint`, of width 32, for 400 steps. Of each run the weight of the MLP's first
product is drawn that training has moved most over the depth, as it was at first, too.
"""

import argparse
import io
import pathlib
import sys
import tempfile
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.arguments import positive
from configs import common
from odeformer import DepthConfig
from odeformer.transformer.bases import functions
from train.checkpoint.weights import load_model
from train.config.border import from_config_dict
from train.devices.mesh import one_device_mesh
from train.loop import train
from train.optimizer import make_optimizer
from train.state import init_state

LAYERS = 8
BASES: dict[str, dict[str, Any]] = {
    "constant, 8 layers": {},
    "hat, 5 nodes": dict(basis="hat", coefficients=5),
    "legendre, 4 coefficients": dict(basis="legendre", coefficients=4),
    "fourier, 5 coefficients": dict(basis="fourier", coefficients=5),
}
COLOURS = ("#57606a", "#1f6feb", "#d1242f", "#16a34a")


def make_config(depth: dict[str, Any], steps: int) -> common.Config:
    """Returns a run of the digits with weights in a basis."""
    config = common.get_digits(layers=LAYERS, share=1, solver="midpoint", **depth)
    config.train_steps, config.log.every_steps = steps, steps
    config.model.update(width=32, heads=2, mlp=64)
    config.checkpoint.update(every_steps=steps, keep=1)
    config.eval.every_steps = steps
    config.optimizer.warmup_steps = min(100, steps // 4)
    return config


def theta(params: Any, depth: DepthConfig, times: np.ndarray) -> np.ndarray:
    """Returns the kernel of the MLP's first product at each time, flattened, [T, weights]."""
    kernels = np.asarray(params["depth"]["groups"]["mlp_layer"]["up"]["kernel"])
    return functions(depth.basis, depth.sets, depth.layers, times) @ kernels.reshape(depth.sets, -1)


def trained(config: common.Config, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Trains a run; returns its weights over depth before and after, and its test accuracy."""
    run = from_config_dict(config)
    optimizer = make_optimizer(run.optimizer, run.train_steps, run.model.depth.layers)
    first = init_state(run, optimizer, one_device_mesh()).params

    with tempfile.TemporaryDirectory() as workdir:
        last = train(run, workdir)
        _, variables = load_model(workdir)

    depth = run.model.depth
    before, after = (theta(params, depth, times) for params in (first, variables["params"]))
    return before, after, last["test/accuracy"]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=positive, default=400, help="of each run")
    parser.add_argument("--out", default="theta.svg", help="of the picture")
    options = parser.parse_args(arguments)

    # The same picture is the same file.
    matplotlib.rcParams["svg.hashsalt"] = "theta"
    times = np.linspace(0.0, LAYERS, 801)
    figure = Figure(figsize=(11, 3), layout="constrained")
    axes = figure.subplots(1, len(BASES), sharey=True)
    for axis, colour, (name, depth) in zip(axes, COLOURS, BASES.items(), strict=True):
        before, after, accuracy = trained(make_config(depth, options.steps), times)
        moved = np.argmax(np.square(after - before).mean(axis=0))
        print(f"{name}: test accuracy {100 * accuracy:.1f} %, weight {moved}", flush=True)

        axis.plot(times, before[:, moved], color="0.6", linestyle="--", label="at first")
        axis.plot(times, after[:, moved], color=colour, label="trained")
        axis.set_title(name, fontsize=10)
        axis.set(xlabel="t, in layers", xticks=range(0, LAYERS + 1, 2))
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)

    axes[0].set_ylabel("theta(t), one weight")
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    pathlib.Path(options.out).write_bytes(content.getvalue())


if __name__ == "__main__":
    main(sys.argv[1:])
