"""Registered names, which a test takes back."""

import contextlib

import pytest

from train.config import run, tables
from train.registry import Table


@contextlib.contextmanager
def names_taken_back():
    """A context after which every table of the trainer's has the names that it had."""
    with pytest.MonkeyPatch.context() as patch:
        for table in vars(tables).values():
            if isinstance(table, Table):
                patch.setattr(table, "_entries", dict(table._entries))

        signs, kinds = dict(tables.SIGNS), dict(run._KINDS)
        try:
            yield
        finally:
            for now, before in ((tables.SIGNS, signs), (run._KINDS, kinds)):
                now.clear()
                now.update(before)
