"""Runs the sections one after the other, each in a process of its own, within a budget."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.accelerator import child, rows
from benchmarks.accelerator.sections import SECTIONS

ROOT = pathlib.Path(__file__).parents[2]
LOG = "log.txt"
START_SECS = 10  # a section that has less is not begun
GRACE_SECS = 8  # that a section has to end in, after its last row
KILL_SECS = 5
SHARE_OF_MEMORY = "0.9"  # of a device that nothing else uses; JAX takes 0.75 by itself
# A rehearsal compiles far longer than it runs.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# Where nothing is timed, kernels need not be tried out: that is what takes long to compile.
UNTUNED = "--xla_gpu_autotune_level=0"


class Options(NamedTuple):
    """What a call of the program is asked for.

    Attributes:
      out: the folder of results.jsonl and log.txt.
      sections: names, in order.
      budget_secs: seconds that the call may take.
      data_dir: of the prepared sets that the trainer reads.
      rehearse: whether sizes are tiny.
    """

    out: pathlib.Path
    sections: Sequence[str]
    budget_secs: float
    data_dir: pathlib.Path | None
    rehearse: bool


def run(options: Options) -> int:
    """Runs the sections; what is known already is not measured again.

    Returns:
      0 if no section failed, whether the budget sufficed for all of them or not; 1 if one did; 2 if
      there is no accelerator.
    """
    start = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    ends: dict[str, str] = {}
    failed = False
    for name in options.sections:
        if rows.is_complete(rows.read(options.out), name):
            ends[name] = "known already"
            continue
        left = options.budget_secs - (time.monotonic() - start)
        later = options.sections[options.sections.index(name) + 1 :]
        limit = _limit(name, later, left)
        if limit < START_SECS:
            ends[name] = "not reached: the budget is spent"
            continue

        print(f"{SECTIONS[name].title}: at most {limit:.0f} s", flush=True)
        code = _run_section(options, name, limit)
        if code == child.NO_ACCELERATOR:
            print(
                "error: no accelerator was found (by JAX; by nvidia-smi for PyTorch and the "
                "trainer): run this where one is, or with --rehearse at tiny sizes anywhere",
                file=sys.stderr,
            )
            return 2
        if code is None:
            rows.append(options.out, {"section": name, "end": f"stopped at {limit:.0f} s"})
        elif code not in (child.COMPLETE, child.FAILED, child.TIME_UP):
            rows.append(options.out, {"section": name, "end": f"failed (exit code {code})"})
        failed |= code not in (None, child.COMPLETE, child.TIME_UP)
        ends[name] = _last_end(options.out, name)

    for name, end in ends.items():
        print(f"{name:<14} {end}")
    print(f"{time.monotonic() - start:.0f} s; {options.out / rows.FILE}, {options.out / LOG}")
    return int(failed)


def _limit(name: str, later: Sequence[str], left: float) -> float:
    """Seconds for a section: what the later ones do not need, at least its own limit, if left."""
    reserved = sum(SECTIONS[each].limit_secs for each in later)
    return min(left, max(SECTIONS[name].limit_secs, left - reserved))


def _run_section(options: Options, name: str, limit: float) -> int | None:
    """The exit code of a section's process; None if it had to be stopped."""
    scratch = options.out.with_name(options.out.name + ".scratch")
    command = [sys.executable, "-m", "benchmarks.accelerator.child", name]
    command += [f"--out={options.out}", f"--scratch={scratch}", f"--secs={limit - GRACE_SECS}"]
    command += ["--rehearse"] if options.rehearse else []
    command += [f"--data_dir={options.data_dir}"] if options.data_dir is not None else []
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(scratch / "xla"))
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    if options.rehearse:
        environment.setdefault("XLA_FLAGS", QUICK)
    elif not SECTIONS[name].is_timed:
        environment.setdefault("XLA_FLAGS", UNTUNED)
    if SECTIONS[name].framework == "torch":
        environment["JAX_PLATFORMS"] = "cpu"  # the device's memory is PyTorch's
    if SECTIONS[name].framework == "jax":
        environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", SHARE_OF_MEMORY)
    with (options.out / LOG).open("a") as log:
        print(f"\n## {name}, at most {limit:.0f} s", file=log, flush=True)
        # A session of its own: the trainer's processes are stopped with the section's.
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _stop(process)


def _stop(process: subprocess.Popen) -> None:
    """Ends a section's processes, politely at first."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_SECS)


def _last_end(out: pathlib.Path, name: str) -> str:
    ends = [line["end"] for line in rows.read(out) if line["section"] == name and "end" in line]
    return ends[-1] if ends else "not known"
