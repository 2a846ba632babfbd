"""The tables of the benchmarks page."""

import pathlib
from collections.abc import Iterable
from typing import Any

from benchmarks.accelerator import (
    card,
    decoding,
    kernels,
    overhead,
    rivals,
    rows,
    study,
    trainer,
    truth,
    utilisation,
)
from benchmarks.accelerator.sections import SECTIONS

FILE = "tables.md"


def markdown(lines: Iterable[dict[str, Any]]) -> str:
    """Returns all tables; 'not measured' where there is no line of results.

    Args:
      lines: of results.jsonl.
    """
    lines = list(lines)
    of = {name: rows.newest(lines, name) for name in SECTIONS}
    tables = {
        "card": card.tables(of["card"]),
        "truth": truth.tables(of["truth"]),
        "overhead": overhead.tables(of["overhead"]),
        "kernels": kernels.tables(of["kernels"]),
        "rivals": rivals.tables(of["rivals"], of["overhead"]),
        "utilisation": utilisation.tables(of["utilisation"], of["card"]),
        "decoding": decoding.tables(of["decoding"], of["static_cache"]),
        "trainer": trainer.tables_trainer(of["trainer"], of["overhead"]),
        "probe": trainer.tables_probe(of["probe"], of["trainer"]),
        "shakespeare": trainer.tables_shakespeare(of["shakespeare"]),
        "study": study.tables(of["study"]),
    }
    parts = []
    for name, section in tables.items():
        parts += [f"### {SECTIONS[name].title}", *map(str, section)]
    return "\n\n".join(parts) + "\n"


def write(folder: pathlib.Path) -> str:
    """Writes the tables of a folder's results into it, and returns them.

    Args:
      folder: that holds results.jsonl.
    """
    text = markdown(rows.read(folder))
    (folder / FILE).write_text(text)
    return text
