"""Draws docs/theta.svg: one weight over depth, projected onto each basis.

    python -m benchmarks.theta

The weight is exp(sin t) over 12 layers of half a unit each, as 48 Legendre polynomials hold it.
"""

import matplotlib
import numpy as np

from odeformer import DepthConfig, resolution
from odeformer.transformer.bases import functions
from tests.helpers.checkout import ROOT

LAYERS = 12
SOURCE = DepthConfig(layers=LAYERS, basis="legendre", coefficients=48)
SHOWN = {
    "constant, 12 layers": DepthConfig(layers=LAYERS),
    "constant, share 3": DepthConfig(layers=LAYERS, share=3),
    "hat, 5 nodes": DepthConfig(layers=LAYERS, basis="hat", coefficients=5),
    "legendre, 4": DepthConfig(layers=LAYERS, basis="legendre", coefficients=4),
    "fourier, 5": DepthConfig(layers=LAYERS, basis="fourier", coefficients=5),
}


def weight(t: np.ndarray) -> np.ndarray:
    """The weight at depth-times t."""
    return np.exp(np.sin(t / 2))


def main() -> None:
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "theta"
    from matplotlib import pyplot

    x, masses = np.polynomial.legendre.leggauss(128)
    phi = functions("legendre", 48, LAYERS, LAYERS * (x + 1) / 2)
    w = (2 * np.arange(48) + 1) / 2 * ((masses * weight(LAYERS * (x + 1) / 2)) @ phi)

    t = np.linspace(0.0, LAYERS, 1201)
    figure, axes = pyplot.subplots(1, len(SHOWN), figsize=(15, 3), sharey=True)
    for axis, (title, depth) in zip(axes, SHOWN.items(), strict=True):
        values = functions(depth.basis, depth.sets, LAYERS, t)
        axis.plot(t, weight(t), color="0.6", linestyle="--")
        axis.plot(t, values @ (resolution.projection(SOURCE, depth) @ w))
        axis.set(title=f"{title}: K = {depth.sets}", xlabel="t, in layers", xticks=(0, 4, 8, 12))

    axes[0].set_ylabel("theta(t), one weight")
    figure.tight_layout()
    figure.savefig(ROOT / "docs/theta.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
