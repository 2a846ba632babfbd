"""Section 3b: which kernels a train step's time goes to, sequential against parallel.

The steps of section 3, traced by JAX's profiler. Kernels whose names differ by their number alone
are one kind.
"""

import collections
import functools
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from benchmarks.accelerator import models
from benchmarks.accelerator.cases import compile_step
from benchmarks.accelerator.overhead import LAYERS, MODELS, cases
from benchmarks.accelerator.rows import Rows, WrongAnswer
from benchmarks.accelerator.tables import NOT_MEASURED, Line, Table, number, stamp

SOLVERS = ("lie_trotter", "euler")
STEPS = 3  # that are traced
SHOWN = 12  # kinds of kernels, those that take longest


def names(tiny: bool = False) -> list[str]:
    """Returns the rows, in order of worth."""
    kinds = ("deit_ti",) if tiny else tuple(MODELS)
    return [f"{name}, {solver}" for name in kinds for solver in SOLVERS]


def run(rows: Rows, tiny: bool) -> None:
    """Measures the section's rows."""
    steps = cases(tiny)
    for name in names(tiny):
        rows.measure(name, functools.partial(_measure, steps[name]))


def _measure(case: Any) -> dict[str, Any]:
    """Milliseconds per step and launches per step, by kind of kernel."""
    compiled, _ = compile_step(case)
    state = models.make_state(models.plain(case.config))
    batch = models.example(case.config, case.batch)
    state, loss = compiled(state, batch)  # what is done once is not to be traced
    jax.block_until_ready(loss)

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                state, loss = compiled(state, batch)
            jax.block_until_ready((state, loss))
        (trace,) = pathlib.Path(folder).glob("**/*.xplane.pb")
        spent, launches = _by_kind(trace)

    longest = [[kind, ns / STEPS / 1e6, launches[kind] / STEPS] for kind, ns in spent.most_common()]
    if not longest:
        raise WrongAnswer("the trace holds no kernel")
    return {"ms": sum(ms for _, ms, _ in longest), "kinds": longest[:SHOWN]}


def _by_kind(trace: pathlib.Path) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """Nanoseconds and launches of each kind of kernel in a trace."""
    spent, launches = collections.Counter(), collections.Counter()
    for event in _events(jax.profiler.ProfileData.from_file(str(trace))):
        kind = re.sub(r"[._]\d+$", "", event.name)
        spent[kind] += event.duration_ns
        launches[kind] += 1
    return spent, launches


def _events(profile: Any) -> Iterator[Any]:
    """The kernels of the first device, or of the host where there is no other device."""
    planes = {plane.name: plane for plane in profile.planes}
    device = planes.get("/device:GPU:0")
    if device is not None:
        lines = [line for line in device.lines if line.name.startswith("Stream")]
    else:
        lines = [line for line in planes["/host:CPU"].lines if line.name.startswith("tf_XLA")]
    for line in lines:
        yield from line.events


def tables(lines: Mapping[str, Line]) -> list[Table]:
    """Returns the section's table.

    Args:
      lines: the newest line of each row, by its name.
    """
    shown = []
    for name in names():
        model, solver = name.split(", ")
        title = (MODELS[model], f"{LAYERS[solver]} (`{solver}`)")
        line = lines.get(name)
        shown.append((*title, "all", number(line, "ms", ".2f"), ""))
        for kind, ms, count in line["values"]["kinds"] if line and "values" in line else []:
            shown.append((*title, f"`{kind}`", f"{ms:.2f}", f"{count:.0f}"))

    columns = ("model", "layer", "kernels", "ms per step", "launches per step")
    title = f"The {SHOWN} kinds of kernels that take longest, of the steps of section 3"
    return [Table(title, columns, shown or [[NOT_MEASURED] * 5], stamp(lines))]
