"""Measures what the integration costs: time, compile time, memory, and gradients' errors.

    python -m benchmarks.integration
    python -m benchmarks.integration --sections=overhead,compile --pairs=31

The field is DeiT-Ti's (width 192, 3 heads, MLP 768) on 65 tokens. Times are ratios of two programs
run in alternation; a figure that misses what is wanted of it is marked with !.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from benchmarks import handwritten, measure
from benchmarks.arguments import positive
from benchmarks.stacks import compare, deit, make_stack, small_gradients, stack_shapes
from odeformer.errors import unknown
from odeformer.ode.problem import ADJOINTS

SHARE = 12
OVERHEAD, SPEEDUP, COMPILE = 1.03, 1.3, 1.2  # wanted of ratios
GROWTH, MEMORY, RECURSIVE = 1.05, 1.05, 1.3
ROUNDING = 1e-10  # wanted of a float64 gradient
COMPILE_LAYERS, COMPILE_REPEATS = (12, 96), 3
STEPS = (4, 16, 64)

ARCHITECTURES = {
    "lie_trotter": "sequential",
    "strang": "Macaron",
    "euler": "parallel",
    "rk4": "RK4",
}


def overhead(options: argparse.Namespace) -> Iterator[Table]:
    """A gradient-descent step through ODEStack against the same by hand; fused against unfused."""
    table = _table(
        "overhead: gradient descent, 12 layers, ODEStack over hand-written",
        ("layer", "solver", "loss differs", "hand ms", "time", "quartiles", "memory"),
        f"wanted: time and memory <= {OVERHEAD}",
    )
    for solver, architecture in ARCHITECTURES.items():

        def by_hand(params, y, layer=handwritten.LAYERS[solver]):
            return handwritten.stack(layer, params, y)

        ratio, difference, memory = compare(
            make_stack(deit(solver=solver)), by_hand, options.batch, options.pairs
        )
        table.add_row(
            architecture,
            solver,
            _judged(difference, 1e-5, ".0e"),
            f"{1e3 * ratio.seconds:.0f}",
            _judged(ratio.median, OVERHEAD),
            str(ratio),
            _judged(memory, OVERHEAD),
        )
    yield table

    table = _table(
        "overhead: one input product for attention and MLP, fused=True over fused=False",
        ("solver", "loss differs", "unfused ms", "time", "quartiles", "memory"),
        "below 1, fusing pays on this machine",
    )
    for solver in ("euler", "rk4"):
        fused, unfused = (make_stack(deit(fused, solver=solver)) for fused in (True, False))
        ratio, difference, memory = compare(fused, unfused, options.batch, options.pairs)
        table.add_row(
            solver,
            _judged(difference, 1e-4, ".0e"),
            f"{1e3 * ratio.seconds:.0f}",
            f"{ratio.median:.3f}",
            str(ratio),
            f"{memory:.3f}",
        )
    yield table


def diffeqsolve(options: argparse.Namespace) -> Iterator[Table]:
    """The adjoint 'checkpoint' against 'recursive', which is diffrax.diffeqsolve as it comes."""
    table = _table(
        "diffeqsolve: gradient descent, adjoint 'recursive' over 'checkpoint'",
        ("solver", "groups", "steps each", "loss differs", "ms", "times faster", "quartiles"),
        f"wanted: {SPEEDUP} times faster or more, at {SHARE} steps per group; ms: of 'checkpoint'",
    )
    for solver in ("euler", "rk4"):
        for groups, share in ((1, SHARE), (12, SHARE), (12, 1)):
            depth: dict[str, Any] = dict(solver=solver, layers=groups * share, share=share)
            recursive, checkpoint = (
                make_stack(deit(adjoint=adjoint, **depth))
                for adjoint in ("recursive", "checkpoint")
            )
            pairs = options.pairs if groups * share <= SHARE else max(3, options.pairs // 4)
            ratio, difference, _ = compare(recursive, checkpoint, options.batch, pairs, groups)
            table.add_row(
                solver,
                str(groups),
                str(share),
                _judged(difference, 1e-5, ".0e"),
                f"{1e3 * ratio.seconds:.0f}",
                _judged(ratio.median, SPEEDUP if share == SHARE else None, at_least=True),
                str(ratio),
            )
    yield table


def compilation(options: argparse.Namespace) -> Iterator[Table]:
    """Time to compile the gradient, and the program's size, as the depth grows."""
    few, many = COMPILE_LAYERS
    table = _table(
        f"compile: the gradient at {many} layers over that at {few}",
        ("solver", f"s at {few}", f"s at {many}", "ratio", f"size at {few}", f"at {many}", "ratio"),
        f"wanted: <= {COMPILE}; size: lines of optimised HLO; median of {COMPILE_REPEATS}",
    )
    for solver in ("euler", "rk4"):
        seconds: dict[int, list[float]] = {few: [], many: []}
        sizes: dict[int, int] = {}
        for repeat in range(-1, COMPILE_REPEATS):  # the first round warms up
            for layers in COMPILE_LAYERS:
                gradient = measure.loss_and_gradient(make_stack(deit(solver=solver, layers=layers)))
                shapes = stack_shapes(layers, options.batch)
                taken, program = measure.compile_seconds(gradient, *shapes)
                sizes[layers] = measure.program_size(program)
                if repeat >= 0:
                    seconds[layers].append(taken)
        medians = {layers: statistics.median(seconds[layers]) for layers in COMPILE_LAYERS}
        table.add_row(
            solver,
            *(f"{medians[layers]:.2f}" for layers in COMPILE_LAYERS),
            _judged(medians[many] / medians[few], COMPILE),
            *(str(sizes[layers]) for layers in COMPILE_LAYERS),
            _judged(sizes[many] / sizes[few], COMPILE),
        )
    yield table


def memory(options: argparse.Namespace) -> Iterator[Table]:
    """Temporary memory of the gradient of one group as its steps grow."""
    few, _, many = STEPS
    table = _table(
        f"memory: MB set aside for the gradient of one group of {few} to {many} steps",
        (
            "solver",
            "adjoint",
            *(f"at {n}" for n in STEPS),
            "growth",
            f"{many} / {few}",
            *(f"/ hand at {n}" for n in (few, many)),
        ),
        "growth: in states a step; / hand: over a scan by hand over rk4 steps.\n"
        f"wanted: checkpoint grows by <= {GROWTH}, and with rk4 is <= {MEMORY} by hand; "
        f"recursive {many} / {few} <= {RECURSIVE}",
    )
    state = 4 * stack_shapes(1, options.batch)[1].size

    def megabytes(apply: Callable[[int], measure.Apply]) -> list[float]:
        gradients = [measure.loss_and_gradient(apply(n)) for n in STEPS]
        programs = [measure.compile_program(g, *stack_shapes(1, options.batch)) for g in gradients]
        return [measure.temporary_bytes(program) / 1e6 for program in programs]

    def add_row(solver: str, adjoint: str, taken: list[float], hand: list[float]) -> None:
        growth = 1e6 * (taken[-1] - taken[0]) / (many - few) / state
        over_hand = [taken[i] / hand[i] for i in (0, -1)]
        judge_hand = (solver, adjoint) == ("rk4", "checkpoint")
        table.add_row(
            solver,
            adjoint,
            *(f"{value:.4g}" for value in taken),
            _judged(growth, GROWTH if adjoint == "checkpoint" else None, ".2f"),
            _judged(taken[-1] / taken[0], RECURSIVE if adjoint == "recursive" else None, ".2f"),
            *(_judged(ratio, MEMORY if judge_hand else None, ".2f") for ratio in over_hand),
        )

    hand = megabytes(
        lambda n: lambda p, y: handwritten.shared_stack(handwritten.rk4_layer, p, y, n)
    )
    add_row("rk4", "by hand", hand, hand)
    for solver in ("rk4", "tsit5"):
        for adjoint in ("checkpoint", "recursive", "store", "backsolve"):
            depth: dict[str, Any] = dict(solver=solver, adjoint=adjoint)
            taken = megabytes(lambda n, d=depth: make_stack(deit(layers=n, share=n, **d)))
            add_row(solver, adjoint, taken, hand)
    yield table


def adjoints(options: argparse.Namespace) -> Iterator[Table]:
    """The gradient of each adjoint against the exact gradient of the discrete solve, in float64."""
    del options
    exact = [name for name in ADJOINTS if name not in ("store", "backsolve")]
    table = _table(
        "adjoints: relative error of the gradient of one group of 12 layers, in float64",
        ("solver", "steps", *exact, "backsolve", "norm", "its norm"),
        "against 'store', which keeps everything; its norm: that of backsolve's gradient.\n"
        f"wanted: all but backsolve <= {ROUNDING:g}",
    )
    x64 = bool(jax.config.read("jax_enable_x64"))
    jax.config.update("jax_enable_x64", True)
    try:
        for solver, steps in (*(("rk4", n) for n in STEPS), ("euler", 12)):
            gradients = small_gradients(solver, steps)
            true, backsolve = gradients["store"], gradients["backsolve"]
            errors = {name: measure.relative_error(gradients[name], true) for name in exact}
            table.add_row(
                solver,
                str(steps),
                *(_judged(errors[name], ROUNDING, ".0e") for name in exact),
                f"{measure.relative_error(backsolve, true):.1e}",
                *(f"{float(measure.tree_norm(gradient)):.4g}" for gradient in (true, backsolve)),
            )
    finally:
        jax.config.update("jax_enable_x64", x64)
    yield table


SECTIONS: dict[str, Callable[[argparse.Namespace], Iterator[Table]]] = {
    "overhead": overhead,
    "diffeqsolve": diffeqsolve,
    "compile": compilation,
    "memory": memory,
    "adjoints": adjoints,
}


def _table(title: str, columns: tuple[str, ...], caption: str) -> Table:
    table = Table(
        title=title, caption=caption, title_justify="left", caption_justify="left", pad_edge=False
    )
    for column in columns:
        words = column in ("layer", "solver", "adjoint")
        whole = words or column == "quartiles"
        table.add_column(column, justify="left" if words else "right", no_wrap=whole)
    return table


def _judged(value: float, wanted: float | None, form: str = ".3f", at_least: bool = False) -> str:
    """The value, with a mark where it misses what is wanted of it."""
    if wanted is None:
        return f"{value:{form}}"
    met = value >= wanted if at_least else value <= wanted
    return f"{value:{form}}" if met else f"[bold red]{value:{form}} ![/]"


def _section_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in SECTIONS:
            raise argparse.ArgumentTypeError(str(unknown("section", name, SECTIONS)))
    return names


def main(argv: list[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.integration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--sections",
        type=_section_names,
        default=list(SECTIONS),
        help=f"which tables, comma-separated, of {', '.join(SECTIONS)} (default: all)",
    )
    parser.add_argument(
        "--pairs", type=positive, default=15, help="timed pairs a ratio (default: 15)"
    )
    parser.add_argument("--batch", type=positive, default=8, help="batch size (default: 8)")
    options = parser.parse_args(argv)
    jax.config.update("jax_enable_compilation_cache", False)
    console = Console()
    device = jax.devices()[0]
    console.print(f"jax {jax.__version__} on {device.device_kind}, batch {options.batch}\n")
    for name in options.sections:
        for table in SECTIONS[name](options):
            console.print(table, "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
