"""Registered names, which a test takes back."""

import contextlib

import pytest

from odeformer import solvers, terms
from train.config import run, tables
from train.config.tables import Table


@contextlib.contextmanager
def names_taken_back():
    """A context after which every table of the library and the trainer has the names it had."""
    with pytest.MonkeyPatch.context() as patch:
        for table in vars(tables).values():
            if isinstance(table, Table):
                patch.setattr(table, "_entries", dict(table._entries))

        plain = (tables.SIGNS, run._KINDS, solvers._SOLVERS, terms._TERMS)
        held = [(table, dict(table)) for table in plain]
        try:
            yield
        finally:
            for table, before in held:
                table.clear()
                table.update(before)
