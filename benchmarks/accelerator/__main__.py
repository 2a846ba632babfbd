"""The program; see the package."""

import argparse
import pathlib
import signal
import sys

from benchmarks import accelerator
from benchmarks.accelerator import driver, rows
from benchmarks.accelerator.sections import SECTIONS
from benchmarks.arguments import positive
from odeformer.errors import unknown


def main(argv: list[str] | None = None) -> int:
    """The program."""
    parser = _make_parser()
    options = parser.parse_args(argv)
    if (options.out is None) == (options.render is None):
        parser.error("give --out=DIR, where results are written, or --render=DIR, to show them")
    if options.render is not None:
        if not (options.render / rows.FILE).exists():
            parser.error(f"--render={options.render} holds no {rows.FILE}: give an --out of before")
        from benchmarks.accelerator import render  # which imports every section

        print(render.write(options.render))
        return 0

    out = options.out.expanduser().resolve()
    _check_out(parser, out, options.rehearse)
    data_dir = _find_data(parser, options)
    asked = driver.Options(out, options.sections, options.budget_secs, data_dir, options.rehearse)
    return driver.run(asked)


def _check_out(parser: argparse.ArgumentParser, out: pathlib.Path, rehearse: bool) -> None:
    """Refuses a folder that would mix the rows of a rehearsal with others."""
    rehearsed = {line.get("rehearsal", False) for line in rows.read(out) if "row" in line}
    if rehearsed - {rehearse}:
        held, flag = ("real rows", "set") if rehearse else ("the rows of a rehearsal", "not set")
        parser.error(f"--out={out} holds {held}, and --rehearse is {flag}: give another --out")


def _find_data(parser: argparse.ArgumentParser, options: argparse.Namespace) -> pathlib.Path | None:
    """The folder of prepared sets, which a rehearsal makes for itself."""
    trains = [name for name in options.sections if SECTIONS[name].trains]
    if options.data_dir is None:
        if trains and not options.rehearse:
            parser.error(
                f"the sections {', '.join(trains)} read prepared sets: give their folder by "
                "--data_dir, or leave these out of --sections"
            )
        return None
    data_dir = options.data_dir.expanduser().resolve()
    if not data_dir.is_dir():
        parser.error(f"--data_dir={data_dir} is no folder: give one that holds prepared sets")
    return data_dir


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator",
        description=accelerator.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="exit codes: 0 no section failed, though the budget may have been spent first; "
        "1 a section failed; 2 bad input, or no accelerator",
    )
    parser.add_argument("--out", type=pathlib.Path, help="folder of the results, continued")
    parser.add_argument("--render", type=pathlib.Path, help="folder whose results become tables")
    parser.add_argument(
        "--sections",
        type=_section_names,
        default=list(SECTIONS),
        help=f"comma-separated, of {', '.join(SECTIONS)} (default: all)",
    )
    parser.add_argument(
        "--budget_secs", type=positive, default=300, help="of the whole call (default: 300)"
    )
    parser.add_argument(
        "--data_dir",
        type=pathlib.Path,
        help="folder of prepared cifar10 and tiny_shakespeare, for the trainer's sections",
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny sizes, on any machine: no figures to quote"
    )
    return parser


def _section_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in SECTIONS:
            raise argparse.ArgumentTypeError(str(unknown("section", name, SECTIONS)))
    return [name for name in SECTIONS if name in names]


if __name__ == "__main__":
    # A polite kill stops the section's processes, too, as an interrupt does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
