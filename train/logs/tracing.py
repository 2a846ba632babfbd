"""Profiler traces of single steps, for TensorBoard and Perfetto."""

import contextlib
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from etils import epath

from train.errors import warn
from train.logs.checks import check_span, check_taken


class Span(NamedTuple):
    """Steps of a start, counted from 1, the last one included."""

    first: int
    last: int


def parse_span(text: str) -> Span:
    """Returns the steps that 'FIRST:LAST' names.

    Raises:
      BadInput: a text that is not of that form, or names no step.
    """
    # Not by int(), which takes signs and underscores, too.
    match = re.fullmatch(r"([0-9]+):([0-9]+)", text)
    span = Span(*map(int, match.groups())) if match else Span(0, 0)

    check_span(text, *span)
    return span


class Trace:
    """Traces some steps of a run into WORKDIR/profile.

    The files are in plugins/profile/DATE there: TensorBoard (with its plugin, xprof) reads them
    from WORKDIR, and ui.perfetto.dev opens perfetto_trace.json.gz. Of several processes each
    traces itself, into a folder process_I. A run that fails keeps what it has traced.
    """

    def __init__(
        self,
        workdir: epath.Path,
        span: Span | None,
        start: int,
        train_steps: int,
        note: Callable[[str], None],
    ):
        """Checks the steps; nothing is traced yet.

        Args:
          workdir: of the run; a local folder or a gs:// address.
          span: the steps to trace, if any.
          start: steps done before this start.
          train_steps: of the whole run.
          note: called with a line that says where the trace was written.

        Raises:
          BadInput: steps that this start does not take.
        """
        if span is not None:
            check_taken(*span, start=start, train_steps=train_steps)

        self._folder = workdir / "profile"
        if jax.process_count() > 1:
            self._folder /= f"process_{jax.process_index()}"

        # From steps of this start to steps of the run.
        self._first, self._last = (start + n for n in span) if span else (None, None)
        self._note = note
        self._traced: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *error: object) -> None:
        self._save()

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Annotates what is done inside as that step; the trace begins at the first step."""
        if step == self._first:
            # JAX writes traces to local folders only.
            folder = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(folder.name, create_perfetto_trace=True)
            self._traced = folder

        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def finish(self, step: int, outputs: Any) -> bool:
        """Ends the trace after the last step; returns whether it did.

        Args:
          step: that was dispatched.
          outputs: arrays of that step.
        """
        # Waited for at the trace's end, and one step before it begins: so that it holds these
        # steps in full, and no part of another.
        if self._first is not None and step in (self._first - 1, self._last):
            jax.block_until_ready(outputs)

        if step != self._last:
            return False

        self._save()
        return True

    def _save(self) -> None:
        """Ends a trace in progress, and copies it to the workdir."""
        if self._traced is None:
            return

        with self._traced as name:
            self._traced = None
            jax.profiler.stop_trace()

            # A run whose disk is full continues without its trace.
            try:
                self._copy(pathlib.Path(name))
            except OSError as error:
                warn(f"the trace cannot be written into {self._folder}: {error}")
                return

        self._note(f"profile: {self._folder}")

    def _copy(self, folder: pathlib.Path) -> None:
        for file in (path for path in folder.rglob("*") if path.is_file()):
            target = self._folder / file.relative_to(folder).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
