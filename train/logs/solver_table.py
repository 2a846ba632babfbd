"""The same weights under several solvers: their metrics in a table."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from odeformer import DepthConfig, solvers

# The table's columns by metric: title and format.
_COLUMNS = {
    "loss": ("loss", "{:.4f}"),
    "accuracy": ("accuracy", "{:.2%}"),
    "f1": ("F1", "{:.2%}"),
    "perplexity": ("ppl", "{:.2f}"),
    "bits_per_byte": ("bits/byte", "{:.4f}"),
    "nfe": ("NFE", "{:g}"),
    "failed_solves": ("failed", "{:g}"),
    "reversible_gap": ("gap", "{:.1e}"),
}
_CAPTION = (
    "* as trained (or as the flags say). NFE: evaluations of all terms. failed: "
    "examples whose solve ran out of steps."
)


def solver_table(
    own: DepthConfig, rows: Sequence[DepthConfig], metrics: Sequence[Mapping[str, float]]
) -> Table:
    """Returns a table of the metrics, a row per depth.

    Args:
      own: the run's own depth, which has a star.
      rows: the depths.
      metrics: of `summarise`, at each depth.
    """
    table = Table(title="the same weights under other solvers", caption=_CAPTION)
    table.add_column("solver", justify="left")
    for column in ("steps per group", *(metric_column(name)[0] for name in metrics[0])):
        table.add_column(column, justify="right")

    for depth, values in zip(rows, metrics, strict=True):
        is_own = all(
            getattr(depth, name) == getattr(own, name) for name in ("solver", "rtol", "fixed_steps")
        )
        table.add_row(
            _name(depth) + (" *" if is_own else ""),
            steps_text(depth),
            *(metric_column(name)[1].format(value) for name, value in values.items()),
        )

    return table


def _name(depth: DepthConfig) -> str:
    pair = "" if depth.reversible is None else f", reversible {depth.reversible:g}"
    return solvers.name_of(depth.solver) + pair


def metric_column(name: str) -> tuple[str, str]:
    """Returns the title and the format of a metric, a registered one included."""
    return _COLUMNS.get(name, (name, "{:.4f}"))


def steps_text(depth: DepthConfig) -> str:
    """Returns a depth's tolerance or its number of steps per group, in words."""
    return f"rtol {depth.rtol:g}" if depth.rtol is not None else str(depth.fixed_steps)
