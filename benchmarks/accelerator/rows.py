"""The rows of figures: a line of results.jsonl each, written as soon as it is known."""

import dataclasses
import datetime
import json
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

FILE = "results.jsonl"
OUT_OF_MEMORY = "out of memory"
_MEMORY_WORDS = ("RESOURCE_EXHAUSTED", "out of memory", "OUT_OF_MEMORY")


class Unavailable(Exception):
    """What a row needs is not on this machine, and need not be: an outcome, not a failure."""


class NotReached(Exception):
    """No time was left for a row."""


class WrongAnswer(Exception):
    """A program ran and gave another result than its reference."""


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the lines of a folder's results; a line that a killed process left torn is skipped.

    Args:
      folder: that holds results.jsonl, or does not.
    """
    path = folder / FILE
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            lines.append(json.loads(text))
        except ValueError:
            print(f"{path}: line {number} is torn, and is left out", file=sys.stderr)
    return lines


def newest(lines: Iterable[Mapping[str, Any]], section: str) -> dict[str, Mapping[str, Any]]:
    """Returns the newest line of each row of a section, by the row's name."""
    return {line["row"]: line for line in lines if line["section"] == section and "row" in line}


def is_complete(lines: Iterable[Mapping[str, Any]], section: str) -> bool:
    """Returns whether a section ended with all of its rows known."""
    ends = [line["end"] for line in lines if line["section"] == section and "end" in line]
    return bool(ends) and ends[-1] == "complete"


def append(folder: pathlib.Path, line: Mapping[str, Any]) -> None:
    """Writes a line to the disk, after what a killed process may have left torn."""
    path = folder / FILE
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((json.dumps(line) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


@dataclasses.dataclass
class Rows:
    """What one section measures.

    Attributes:
      folder: that holds results.jsonl.
      section: its name.
      card: what runs it, as its framework calls it.
      software: the versions that matter, in one line.
      rehearsal: whether the sizes are tiny.
      deadline: `time.monotonic()` after which no further row is begun.
      failed: rows that raised an error.
      unreached: rows for which no time was left.
    """

    folder: pathlib.Path
    section: str
    card: str
    software: str
    rehearsal: bool
    deadline: float
    failed: list[str] = dataclasses.field(default_factory=list)
    unreached: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        lines = newest(read(self.folder), self.section)
        self._known = {name: line for name, line in lines.items() if "error" not in line}

    def has(self, row: str) -> bool:
        """Returns whether a row is known, by an earlier run of the section too."""
        return row in self._known

    def values(self, row: str) -> dict[str, Any] | None:
        """Returns the figures of a row, None where it has none."""
        return self._known.get(row, {}).get("values")

    def is_due(self, row: str) -> bool:
        """Returns whether a row is to be measured now; notes one for which no time is left."""
        if self.has(row):
            return False
        if time.monotonic() < self.deadline:
            return True
        self._leave_out(row)
        return False

    def check_time(self) -> None:
        """Raises `NotReached` after the deadline: called where a row's work begins."""
        if time.monotonic() >= self.deadline:
            raise NotReached

    def measure(self, row: str, function: Callable[[], Mapping[str, Any]]) -> None:
        """Writes what a function measures, or why it does not, if the row is due.

        Args:
          row: the row's name.
          function: as `record` takes it.
        """
        if self.is_due(row):
            self.record(row, function)

    def record(self, row: str, function: Callable[[], Mapping[str, Any]]) -> None:
        """Writes what a function has to say of a row that was begun in time.

        Args:
          row: the row's name.
          function: returns the figures by name. A device out of memory and `Unavailable` are
            outcomes, and in a rehearsal a missing package is one too; anything else that it raises
            is an error, and the next row follows.
        """
        start = time.monotonic()
        try:
            result: dict[str, Any] = {"values": dict(function())}
        except NotReached:
            return self._leave_out(row)
        except Unavailable as reason:
            result = {"outcome": str(reason)}
        except ModuleNotFoundError as error:
            missing = f"{(error.name or '?').split('.')[0]} is not installed"
            result = {"outcome": missing} if self.rehearsal else {"error": missing}
        except Exception as error:
            if any(word in str(error) for word in _MEMORY_WORDS):
                result = {"outcome": OUT_OF_MEMORY}
            else:
                traceback.print_exc()
                first = (str(error).splitlines() or [""])[0]
                result = {"error": f"{type(error).__name__}: {first}"[:500]}
        self._write(row, result, time.monotonic() - start)

    def _leave_out(self, row: str) -> None:
        if row not in self.unreached:
            self.unreached.append(row)
            print(f"{self.section} {row}: not reached", flush=True)

    def end(self, how: str) -> None:
        """Writes the section's last line: 'complete', or what keeps it from being that."""
        append(self.folder, {"section": self.section, "end": how})
        print(f"{self.section}: {how}", flush=True)

    def _write(self, row: str, result: dict[str, Any], secs: float) -> None:
        line = {
            "section": self.section,
            "row": row,
            "card": self.card,
            "software": self.software,
            "date": datetime.date.today().isoformat(),
            "secs": round(secs, 2),
            **({"rehearsal": True} if self.rehearsal else {}),
            **result,
        }
        append(self.folder, line)
        print(f"{self.section} {row}: {json.dumps(result)}", flush=True)
        if "error" in result:
            self.failed.append(row)
        else:
            self._known[row] = line
