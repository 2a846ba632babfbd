"""Measures compiled programs: gradient-descent steps, times as ratios, memory, size, errors."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Params = Any  # a pytree
Apply = Callable[[Params, jax.Array], jax.Array]  # the state [B, N, D] at depth's end

LEARNING_RATE = 1e-3


class Ratio(NamedTuple):
    """Quartiles of pairwise ratios of wall time, and the median seconds of the denominator."""

    lower: float
    median: float
    upper: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.lower:.2f}, {self.upper:.2f}"


def loss_and_gradient(apply: Apply) -> Callable:
    """Returns (params, y) -> (loss, gradient), the loss being the mean square of the state."""

    def loss(params: Params, y_BND: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(apply(params, y_BND)))

    return jax.value_and_grad(loss)


def descent_step(apply: Apply) -> Callable:
    """Returns (params, y) -> (params, loss): one step of plain gradient descent."""

    def step(params: Params, y_BND: jax.Array) -> tuple[Params, jax.Array]:
        loss, gradient = loss_and_gradient(apply)(params, y_BND)
        return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradient), loss

    return step


def compile_program(function: Callable, *args: Any) -> jax.stages.Compiled:
    """Compiles a function afresh for arguments that may be shapes alone."""
    return jax.jit(lambda *args: function(*args)).lower(*args).compile()


def compile_seconds(function: Callable, *args: Any) -> tuple[float, jax.stages.Compiled]:
    """Returns how long tracing, lowering and compiling take with empty caches, and the program."""
    jax.clear_caches()
    start = time.perf_counter()
    program = compile_program(function, *args)
    return time.perf_counter() - start, program


def program_size(program: jax.stages.Compiled) -> int:
    """Returns the lines of the optimised HLO, nearly all of them an instruction each."""
    return len((program.as_text() or "").splitlines())


def temporary_bytes(program: jax.stages.Compiled) -> int:
    """Returns what XLA sets aside beyond arguments and results."""
    analysis: Any = program.memory_analysis()
    return analysis.temp_size_in_bytes


def time_ratio(
    program: Callable, reference: Callable, params: Params, y_BND: jax.Array, pairs: int
) -> tuple[Ratio, float]:
    """Times two descent steps in alternation; who goes first changes from pair to pair.

    Args:
      program: (params, y) -> (params, loss), the numerator.
      reference: the denominator, of the same kind.
      params: the parameters both are given, each time.
      y_BND: the state both are given.
      pairs: how many pairs are timed, after one that is not.

    Returns:
      The ratios' quartiles, and the relative difference of the losses.
    """
    both, losses = (program, reference), [0.0, 0.0]
    ratios, denominators = [], []
    for n in range(-1, pairs):
        seconds = [0.0, 0.0]
        for i in (0, 1) if n % 2 else (1, 0):
            start = time.perf_counter()
            _, loss = jax.block_until_ready(both[i](params, y_BND))
            seconds[i], losses[i] = time.perf_counter() - start, float(loss)
        if n >= 0:
            ratios.append(seconds[0] / seconds[1])
            denominators.append(seconds[1])
    lower, median, upper = (
        statistics.quantiles(ratios, n=4, method="inclusive") if pairs > 1 else ratios * 3
    )
    difference = abs(losses[0] - losses[1]) / abs(losses[1])
    return Ratio(lower, median, upper, statistics.median(denominators)), difference


def tree_norm(tree: Any) -> jax.Array:
    """Returns the Euclidean norm over all leaves."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


def relative_error(tree: Any, reference: Any) -> float:
    """Returns the norm of the difference over the norm of the reference."""
    return float(tree_norm(jax.tree.map(jnp.subtract, tree, reference)) / tree_norm(reference))
