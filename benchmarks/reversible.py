"""The reversible pair: memory of its gradient over depth, and its time.

python -m benchmarks.reversible                     the tables
python -m benchmarks.reversible --picture=docs/reversible_memory.svg
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from benchmarks import measure
from benchmarks.arguments import positive
from odeformer import DepthConfig, ODEStack, TransformerField

LAYERS = (12, 24, 48, 96)
COUPLING = 0.999
KINDS: dict[str, dict[str, Any]] = {
    "plain solver, checkpoint": {},
    "pair, checkpoint": dict(reversible=COUPLING),
    "pair, reversible": dict(reversible=COUPLING, adjoint="reversible"),
}
FIELD = TransformerField(width=64, heads=4, mlp=128)
SHAPE = (8, 32, 64)


def apply_stack(**depth: Any) -> tuple[Callable, Any]:
    """Returns a stack as (params, y) -> state, and the shapes of its parameters."""
    stack = ODEStack(DepthConfig(**depth), FIELD)
    params = jax.eval_shape(stack.init, jax.random.key(0), jax.ShapeDtypeStruct(SHAPE, "float32"))

    def apply(params: Any, y_BND: jax.Array) -> jax.Array:
        solution: Any = stack.apply(params, y_BND)
        return solution.y1

    return apply, params


def megabytes(**depth: Any) -> float:
    """Returns the temporary memory of the gradient."""
    apply, params = apply_stack(**depth)
    state = jax.ShapeDtypeStruct(SHAPE, "float32")
    program = measure.compile_program(measure.loss_and_gradient(apply), params, state)
    return measure.temporary_bytes(program) / 1e6


def memory(solver: str, console: Console) -> dict[str, list[float]]:
    """Prints the memory by depth, and returns it by kind."""
    table = Table(title=f"temporary memory of the gradient, MB, {solver}")
    for column in ("layers, untied", *map(str, LAYERS)):
        table.add_column(column, justify="left" if column.startswith("l") else "right")

    found = {}
    for kind, depth in KINDS.items():
        found[kind] = [megabytes(layers=n, solver=solver, **depth) for n in LAYERS]
        table.add_row(kind, *(f"{size:.2f}" for size in found[kind]))

    console.print(table)
    few, many = (
        megabytes(layers=n, share=n, solver=solver, **KINDS["pair, reversible"]) for n in (4, 64)
    )
    console.print(f"{solver}, shared weights: 4 steps {few:.2f} MB, 64 steps {many:.2f} MB")
    return found


def times(solver: str, pairs: int, console: Console) -> None:
    """Prints the time of a step of gradient descent at 12 layers, as ratios of medians of pairs."""
    state, programs = jax.random.normal(jax.random.key(1), SHAPE), {}
    params: Any = None
    for kind, depth in KINDS.items():
        stack = ODEStack(DepthConfig(layers=12, solver=solver, **depth), FIELD)
        params = jax.jit(stack.init)(jax.random.key(0), state)
        apply, _ = apply_stack(layers=12, solver=solver, **depth)
        programs[kind] = measure.compile_program(measure.descent_step(apply), params, state)

    *others, reversible = programs
    for other in others:
        ratio, _ = measure.time_ratio(
            programs[reversible], programs[other], params, state, pairs=pairs
        )
        console.print(
            f"{solver}: '{reversible}' takes {ratio.median:.2f} ({ratio}) times '{other}', "
            f"{1e3 * ratio.seconds:.0f} ms"
        )


def draw(path: str, solver: str, found: dict[str, list[float]]) -> None:
    """Draws the memory over layers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    for (kind, sizes), colour in zip(found.items(), ("#9aa5b1", "#d1242f", "#1f6feb"), strict=True):
        axes.plot(LAYERS, sizes, "o-", color=colour, label=kind)

    axes.set_xlabel("layers, each with weights of its own")
    axes.set_ylabel("MB")
    axes.set_title(f"temporary memory of the gradient, {solver}")
    axes.set_xticks(LAYERS)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--solvers", default="midpoint,rk4", help="comma-separated")
    parser.add_argument("--pairs", type=positive, default=15, help="of steps that are timed")
    parser.add_argument("--picture", help="a file to draw the first solver's memory into")
    options = parser.parse_args()

    console = Console()
    for number, solver in enumerate(options.solvers.split(",")):
        times(solver, options.pairs, console)
        found = memory(solver, console)
        if options.picture and not number:
            draw(options.picture, solver, found)


if __name__ == "__main__":
    sys.exit(main())
