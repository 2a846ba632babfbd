"""Measures generation with caches against a pass over the whole block for each token.

    python -m benchmarks.generate
    python -m benchmarks.generate --solvers euler,tsit5 --pairs 9

One prompt of one token is continued greedily until the block of gpt_nano (256 tokens) is full, by
`odeformer.generate`. The reference is a jitted forward pass over the whole block for each token;
16 tokens of it are timed, and their time is scaled up to as many as the other draws. Compilation
is left out, and both run in alternation; a ratio that is smaller than wanted is marked with !.
"""

import argparse
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import odeformer
from benchmarks import measure
from benchmarks.arguments import positive
from odeformer import LM, presets, solvers

WANTED = 10.0  # the full passes' time over that with caches, at least
TIMED_TOKENS = 16  # of the full passes


def solver_names(text: str) -> list[str]:
    """Returns the names of solvers, parted by commas, or refuses the argument."""
    names = text.split(",")
    for name in names:
        if name not in solvers.NAMES:
            raise argparse.ArgumentTypeError(
                f"names of {', '.join(solvers.NAMES)}, parted by commas, are accepted; {name!r} "
                "was given"
            )
    return names


def make_programs(model: LM) -> tuple[Any, Any]:
    """Returns (variables, prompt) -> (tokens, a number): full passes, and the use of caches."""
    block = model.config.block_size

    @jax.jit
    def step(variables: Any, tokens_BN: jax.Array, filled: int) -> jax.Array:
        logits: Any = model.apply(variables, tokens_BN)
        return tokens_BN.at[:, filled].set(logits[:, filled - 1].argmax(axis=-1))

    def full(variables: Any, prompt: jax.Array) -> tuple[jax.Array, float]:
        tokens_BN = jnp.zeros((1, block), jnp.int32).at[0, 0].set(prompt[0])
        for filled in range(1, TIMED_TOKENS + 1):
            tokens_BN = step(variables, tokens_BN, filled)
        return tokens_BN, 1.0

    def cached(variables: Any, prompt: jax.Array) -> tuple[np.ndarray, float]:
        texts = odeformer.generate(model, variables, [prompt.tolist()], temperature=0.0)
        return texts[0], 1.0

    return full, cached


def tabulate(names: list[str], dtype: str, pairs: int) -> Table:
    """Returns the table: a row for each solver."""
    table = Table(
        title="full passes over generation with caches: gpt_nano, one prompt",
        caption=f"wanted: a ratio >= {WANTED:g}",
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
    )
    table.add_column("solver")
    for column in ("cached ms/token", "full ms/token", "ratio", "quartiles"):
        table.add_column(column, justify="right")
    for name in names:
        model = LM(presets.lm("gpt_nano", dtype=dtype, depth={"solver": name}))
        variables = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        full, cached = make_programs(model)
        ratio, _ = measure.time_ratio(full, cached, variables, jnp.array([65]), pairs)
        new = model.config.block_size - 1
        lower, median, upper = (new / TIMED_TOKENS * value for value in ratio[:3])
        ms = 1e3 * ratio.seconds / new
        shown = f"{median:.1f}" if median >= WANTED else f"[bold red]{median:.1f} ![/]"
        table.add_row(name, f"{ms:.2f}", f"{median * ms:.1f}", shown, f"{lower:.1f}, {upper:.1f}")
    return table


def main(argv: list[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--solvers",
        type=solver_names,
        default=["euler", "rk4"],
        help="names, parted by commas (default: euler,rk4)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the matrix products (default: float32)",
    )
    parser.add_argument(
        "--pairs", type=positive, default=5, help="timed pairs a ratio (default: 5)"
    )
    options = parser.parse_args(argv)
    jax.config.update("jax_enable_compilation_cache", False)
    console = Console()
    console.print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}\n")
    console.print(tabulate(options.solvers, options.dtype, options.pairs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
