"""What CONTRIBUTING.md and docs/architecture.md name exists, as they name it."""

import importlib.util
import operator
import re

import diffrax
import jax.numpy as jnp
import numpy as np
import pytest

import odeformer
from odeformer.ode.steps import unrolled_step
from tests.helpers.checkout import ROOT
from tests.project.test_imports import ROWS

GUIDE = "docs/architecture.md"
PAGES = {path: (ROOT / path).read_text() for path in ("CONTRIBUTING.md", GUIDE)}
FOLDERS = "odeformer|train|configs|colabs|benchmarks|tests|docs"


def matches(pattern, page):
    """What a pattern finds in a page, its lines joined; a pattern that finds nothing is wrong."""
    found = set(re.findall(pattern, " ".join(PAGES[page].split())))
    assert found, pattern
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_folder_exists(page):
    paths = matches(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]*\w/?", page)
    paths |= matches(r"`([\w.-]+\.(?:md|toml|yaml|txt))`", page)

    # But for the name of a metric, which is no path.
    missing = {path for path in paths if not (ROOT / path).exists()}
    assert missing <= {"train/NAME"}


def test_every_name_is_in_its_file():
    """Of 'NAME in FILE' and 'NAME (FILE'."""
    for name, path in matches(r"`(\w+)` (?:in |\()`([\w/.]+\.py)`", GUIDE):
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text()), f"{name} in {path}"


@pytest.mark.parametrize("page", PAGES)
def test_every_test_exists(page):
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    missing = {name for name in matches(r"`(test_\w+)`", page) if f"def {name}(" not in tests}
    assert missing == set()


def test_every_name_of_the_library_is_public():
    for name in matches(r"`odeformer\.(\w+(?:\.[A-Z]\w*)?)`", GUIDE):
        # The rooms that the import rule keeps free.
        if name not in ("interop", "analysis"):
            assert operator.attrgetter(name)(odeformer), name


def test_every_program_exists():
    for page in PAGES:
        for module in re.findall(r"python -m (train[\w.]*)", PAGES[page]):
            assert importlib.util.find_spec(module), module


def test_every_target_of_make_is_described():
    """And no other: those of the list that `make help` prints."""
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    table = re.findall(r"^\| `make ([a-z-]+)` \|", PAGES["CONTRIBUTING.md"], flags=re.MULTILINE)
    assert sorted(table) == sorted(targets)


def test_the_rows_of_the_import_rule():
    (block,) = re.findall(r"```rows\n(.*?)\n```", PAGES[GUIDE], flags=re.DOTALL)
    assert block.splitlines() == ROWS[::-1]


def test_the_rooms_are_all_there():
    """Each folder of the library and the trainer, and each module directly in the trainer."""
    text = PAGES[GUIDE]
    for package in ("odeformer", "train"):
        for path in (ROOT / package).iterdir():
            name = path.relative_to(ROOT).as_posix()
            if (path / "__init__.py").exists():
                assert f"`{name}/`" in text, name
            elif path.suffix == ".py" and "__" not in path.name:
                assert f"`{name}`" in text, name


def test_the_example_of_a_solver_has_its_order(smooth):
    """As pasted; against diffrax's own steps, and of order 3 by the conditions on its tableau."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGES[GUIDE], flags=re.DOTALL)
    scope: dict = {}
    exec(block, scope)
    method = scope["SSPRK3"]()

    table = method.tableau
    b, c = table.b_sol, np.array([0.0, *table.c])
    a = np.array([[*row, *[0.0] * (3 - len(row))] for row in ([], *table.a_lower)])
    conditions = [b.sum(), b @ c, b @ c**2, b @ a @ c]
    np.testing.assert_allclose(conditions, [1, 1 / 2, 1 / 3, 1 / 6], rtol=1e-12)
    assert method.order(None) == 3

    field, y0, params = smooth
    t0, t1 = jnp.float32(0.3), jnp.float32(0.8)
    term = diffrax.ODETerm(lambda t, y, args: field(t, y, args))
    state = method.init(term, t0, t1, y0, params)
    expected = method.step(term, t0, t1, y0, params, state, made_jump=False)[0]
    y1 = unrolled_step(table, lambda stage, t, y: field(t, y, params), t0, t1, y0)
    np.testing.assert_allclose(y1, expected, rtol=1e-6, atol=1e-6)


def test_contributing_stays_short():
    assert len(PAGES["CONTRIBUTING.md"].splitlines()) < 150
