"""Runs that several files of tests begin with."""

import pytest

from tests.helpers.adapted import make_adapted
from tests.helpers.saved import save, shaken


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A saved run whose weights are adapted."""
    workdir = tmp_path_factory.mktemp("base") / "run"
    save(make_adapted(), workdir, shaken)
    return workdir
