"""The process of one section: `python -m benchmarks.accelerator.child NAME --out=DIR --secs=S`.

Exit codes: 0 every row is known, 1 a row failed, 3 there is no accelerator, 4 the time was up.
"""

import argparse
import contextlib
import pathlib
import shutil
import subprocess
import sys
import time
import traceback
from importlib import metadata

from benchmarks.accelerator import rehearsal_data, rows
from benchmarks.accelerator.sections import SECTIONS, Section

COMPLETE, FAILED, NO_ACCELERATOR, TIME_UP = 0, 1, 3, 4


def main(argv: list[str] | None = None) -> int:
    """The process."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("name", choices=tuple(SECTIONS))
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--scratch", type=pathlib.Path, required=True)
    parser.add_argument("--secs", type=float, required=True)
    parser.add_argument("--data_dir", type=pathlib.Path)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args(argv)
    deadline = time.monotonic() + options.secs
    section = SECTIONS[options.name]

    card = _find_card(section, options.rehearse)
    if card is None:
        return NO_ACCELERATOR
    mine = rows.Rows(
        folder=options.out,
        section=section.name,
        card=card,
        software=_software(section),
        rehearsal=options.rehearse,
        deadline=deadline,
    )
    try:
        if section.trains:
            data_dir = options.data_dir or options.scratch / "data"
            if options.rehearse and options.data_dir is None:
                with contextlib.suppress(ModuleNotFoundError):  # of which each row will say
                    rehearsal_data.make(data_dir)
            section.load()(mine, options.rehearse, data_dir, options.scratch)
        else:
            section.load()(mine, options.rehearse)
    except Exception as error:  # outside of any row: the section's own line says so
        traceback.print_exc()
        mine.end(f"failed ({type(error).__name__}: {str(error)[:300]})")
        return FAILED
    return _end(mine)


def _end(mine: rows.Rows) -> int:
    """Writes the section's last line."""
    if mine.failed:
        mine.end(f"failed: {', '.join(mine.failed)}")
        return FAILED
    if mine.unreached:
        mine.end(f"not reached: {', '.join(mine.unreached)}")
        return TIME_UP
    mine.end("complete")
    return COMPLETE


def _find_card(section: Section, rehearse: bool) -> str | None:
    """What runs the section, as its framework calls it; None if it is no accelerator."""
    if section.framework == "jax":
        import jax

        is_host = jax.default_backend() == "cpu"
        return None if is_host and not rehearse else jax.local_devices()[0].device_kind
    if shutil.which("nvidia-smi"):  # the trainer's own processes are to have the whole device
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.splitlines()[0].strip()
    return "cpu" if rehearse else None


def _software(section: Section) -> str:
    """The versions of the section's packages, in one line."""
    versions = []
    for package in section.packages:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    return ", ".join(versions)


if __name__ == "__main__":
    sys.exit(main())
