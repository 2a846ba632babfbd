"""What regularising a flow costs per step, and what becomes of its evaluations in training.

    python -m benchmarks.regularised --sections=cost
    python -m benchmarks.regularised --sections=picture --out=docs/regularised.svg

Cost: gradient descent on DeiT-Ti's field (width 192, 65 tokens), with a sum in the loss over
without, as ratios of two programs run in alternation. Picture: the digits under adaptive steps,
trained plain and under each regularisation, and their evaluations over the steps of training.
"""

import argparse
import io
import pathlib
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks import measure
from benchmarks.arguments import positive
from configs import common
from odeformer import ODEStack, RegularisedDepth, presets
from odeformer.transformer.field import transformer_field
from train.logs.metrics import read_metrics
from train.loop import train

# Solver, sum, and the ratio of times that is wanted.
COSTS = (
    ("rk4", "kinetic", 1.05),
    ("tsit5", "kinetic", 1.05),
    ("tsit5", "error", 1.20),
)
WEIGHTS: dict[str, dict[str, float]] = {
    "plain": {},
    "kinetic 0.05": dict(kinetic=0.05),
    "error 30": dict(error=30.0),
    "end_time 1": dict(end_time=1.0),
}
COLOURS = ("#57606a", "#1f6feb", "#d1242f", "#16a34a")


def cost(options: argparse.Namespace) -> None:
    """Prints time and memory of a step with each sum over those of a step without."""
    table = Table(title=f"gradient descent with a sum over without, {options.layers} layers")
    for column in ("solver", "sum", "plain ms", "time", "quartiles", "memory", "wanted"):
        table.add_column(column, justify="right")

    for solver, name, wanted in COSTS:
        stacks = [_stack(solver, options.layers, sums) for sums in ((name,), ())]
        y_BND = jax.random.normal(jax.random.key(1), (options.batch, 65, 192))
        params = jax.jit(stacks[0].init)(jax.random.key(0), y_BND)
        summed, plain = (measure.compile_program(_step(stack), params, y_BND) for stack in stacks)

        ratio, _ = measure.time_ratio(summed, plain, params, y_BND, options.pairs)
        memory = measure.temporary_bytes(summed) / measure.temporary_bytes(plain)
        table.add_row(
            solver,
            name,
            f"{1e3 * ratio.seconds:.0f}",
            f"{ratio.median:.3f}",
            str(ratio),
            f"{memory:.2f}",
            f"{wanted:.2f}",
        )
    Console().print(table)


def _stack(solver: str, layers: int, sums: tuple[str, ...]) -> ODEStack:
    depth = RegularisedDepth(layers=layers, solver=solver, sums=sums)
    return ODEStack(depth, transformer_field(presets.vit("deit_ti")))


def _step(stack: ODEStack):
    """One step of plain gradient descent, (params, y) -> (params, loss)."""

    def loss(params: Any, y_BND: jax.Array) -> jax.Array:
        solution: Any = stack.apply(params, y_BND)
        sums = sum(x.sum(axis=0).mean() for x in (solution.sums or {}).values())
        return jnp.mean(jnp.square(solution.y1)) + 0.01 * sums

    def step(params: Any, y_BND: jax.Array) -> tuple[Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params, y_BND)
        rate = measure.LEARNING_RATE
        return jax.tree.map(lambda p, g: p - rate * g, params, gradient), value

    return step


def picture(options: argparse.Namespace) -> None:
    """Trains the digits under adaptive steps, and draws their evaluations."""
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    axes = figure.subplots()

    for (name, regularise), colour in zip(WEIGHTS.items(), COLOURS, strict=True):
        with tempfile.TemporaryDirectory() as workdir:
            last = train(_digits(regularise, options.steps), workdir)
            lines = read_metrics(workdir)
        found = [(line["step"], line["train/nfe"]) for line in lines if "train/nfe" in line]
        accuracy, nfe = 100 * last["test/accuracy"], last["test/nfe"]
        print(f"{name}: test accuracy {accuracy:.1f} %, NFE {nfe:.0f}", flush=True)
        axes.plot(*zip(*found, strict=True), color=colour, label=f"{name} ({accuracy:.1f} %)")

    axes.set_xlabel("step of training")
    axes.set_ylabel("evaluations of all terms per batch")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, title="regularise (test accuracy)")

    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    pathlib.Path(options.out).write_bytes(content.getvalue())


def _digits(regularise: dict[str, float], steps: int) -> common.Config:
    """A run of the digits whose steps a tolerance chooses."""
    config = common.get_digits(layers=2, share=2, solver="bosh3", rtol=1e-2, atol=1e-3)
    config.train_steps, config.batch_size = steps, 32
    config.model.update(width=32, heads=2, mlp=64)
    config.regularise.update(regularise)
    config.checkpoint.update(every_steps=steps, keep=1)
    config.eval.every_steps = steps
    config.log.every_steps = max(steps // 40, 1)
    return config


SECTIONS = {"cost": cost, "picture": picture}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sections", default="cost", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--batch", type=positive, default=16)
    parser.add_argument("--layers", type=positive, default=4)
    parser.add_argument("--pairs", type=positive, default=21)
    parser.add_argument("--steps", type=positive, default=400, help="of the picture's runs")
    parser.add_argument("--out", default="regularised.svg", help="of the picture")
    options = parser.parse_args(arguments)

    for name in options.sections.split(","):
        if name not in SECTIONS:
            parser.error(f"--sections: one or more of {', '.join(SECTIONS)}; {name!r} was given")
        SECTIONS[name](options)


if __name__ == "__main__":
    main(sys.argv[1:])
