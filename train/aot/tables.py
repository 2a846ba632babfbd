"""A report as tables in the terminal."""

from rich.console import Console
from rich.table import Table

from train.aot.report import Report


def print_report(report: Report, console: Console) -> None:
    """Prints the tables of a report."""
    slices = f"{report.num_slices} slices of " if report.num_slices > 1 else ""
    mesh = ", ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    console.print(f"{report.config} on {slices}{report.topology}: {report.chips} chips ({mesh})")

    table = Table(title="memory per chip")
    table.add_column("what")
    table.add_column("bytes", justify="right")
    for name, size in (
        (f"parameters ({report.parameters:,} in all)", report.parameter_bytes),
        ("optimiser state", report.optimizer_bytes),
        ("moving average of the weights", report.ema_bytes),
        ("temporary, including the batch and the program", report.temporary_bytes),
        ("total at the peak", report.total_bytes),
        ("of the chip", report.available_bytes),
    ):
        if size is not None:
            table.add_row(name, format_bytes(size))
    console.print(table)
    console.print(_verdict(report))

    if report.model_flops is None:
        console.print("Model FLOPs: the number of adaptive steps depends on the input.")
    else:
        # The loops of diffrax's adjoints have no known trip count.
        recomputed = "not counted under this adjoint"
        if report.recomputed_flops is not None:
            recomputed = f"{report.recomputed_flops / report.chips / 1e12:.3f}"

        console.print(
            f"Model TFLOPs per step of {report.batch_size:,} examples: "
            f"{report.model_flops / 1e12:,.1f}, {report.model_flops / report.chips / 1e12:.3f} per "
            f"chip; recomputed, per chip: {recomputed}"
        )

    if report.collectives is not None:
        _print_collectives(report, console)


def _print_collectives(report: Report, console: Console) -> None:
    table = Table(title="collectives per chip and step")
    for column in ("kind", "where"):
        table.add_column(column)
    for column in ("times", "bytes"):
        table.add_column(column, justify="right")

    for row in report.collectives or ():
        mark = "" if row["known"] else " *"
        table.add_row(
            row["kind"], row["place"], f"{row['count']:,}{mark}", format_bytes(row["bytes"])
        )

    table.add_row("all", "", "", format_bytes(report.collective_bytes or 0))
    if any(not row["known"] for row in report.collectives or ()):
        table.caption = "* inside a loop whose trip count is not known before it runs: taken as 1"
    console.print(table)


def _verdict(report: Report) -> str:
    if report.fits:
        return f"It fits. XLA compiled it in {report.compile_secs:g} s."

    lines = ["It does not fit"]
    if report.total_bytes is not None:
        lines[0] += f", by {format_bytes(report.total_bytes - report.available_bytes)}"

    lines[0] += ". What would help, as --config.KEY=VALUE:"
    return "\n".join([*lines, *(f"  {line}" for line in report.advice)])


def format_bytes(size: int) -> str:
    """Returns a number of bytes in a readable unit, e.g. '1.50 GiB'."""
    power = min(max(size.bit_length() - 1, 0) // 10, 4)
    return f"{size / 1024**power:.2f} {('', 'Ki', 'Mi', 'Gi', 'Ti')[power]}B"
