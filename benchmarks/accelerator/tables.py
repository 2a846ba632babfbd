"""Tables of Markdown from the rows that were measured."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

NOT_MEASURED = "not measured"

Line = Mapping[str, Any]  # of results.jsonl


class Table(NamedTuple):
    """A table, its title over it and its hardware, versions and date under it."""

    title: str
    columns: Sequence[str]
    rows: Iterable[Sequence[str]]
    caption: str = ""

    def __str__(self) -> str:
        head = [f"**{self.title}**", "", _row(self.columns), _row("---" for _ in self.columns)]
        caption = ["", self.caption] if self.caption else []
        return "\n".join([*head, *map(_row, self.rows), *caption])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def number(line: Line | None, key: str, form: str) -> str:
    """Returns a figure of a line, or why there is none.

    Args:
      line: of results.jsonl; None where the row was never reached.
      key: the figure's name.
      form: how it is formatted.
    """
    if line is None:
        return NOT_MEASURED
    if "values" not in line:
        why = f"failed ({line['error']})" if "error" in line else line["outcome"]
        return why.replace("|", "/")
    value = line["values"].get(key)
    if value is None:
        return "-"
    return "0" if value == 0 else format(value, form)


def ratio(line: Line | None, reference: Line | None, key: str, form: str = ".2f") -> str:
    """Returns one line's figure over another's, measured on the same card.

    Args:
      line: the numerator's.
      reference: the denominator's.
      key: the figure's name.
      form: how the ratio is formatted.
    """
    for each in (line, reference):
        if each is None or "values" not in each:
            return number(each, key, form)
    assert line is not None and reference is not None
    if line["card"] != reference["card"]:
        return "on two cards"
    numerator, denominator = line["values"].get(key), reference["values"].get(key)
    if numerator is None or not denominator:
        return "-"
    return format(numerator / denominator, form)


def stamp(lines: Mapping[str, Line]) -> str:
    """Returns on what and when the lines were measured; nothing where there are none."""
    runs = {(line["card"], line["software"], line["date"]) for line in lines.values()}
    rehearsed = any(line.get("rehearsal") for line in lines.values())
    told = "; ".join(f"{card}, {software}, {date}" for card, software, date in sorted(runs))
    if not told:
        return ""
    return f"{told}.{' A rehearsal at tiny sizes: no figures to quote.' if rehearsed else ''}"
