"""The project's own files."""

import doctest
import importlib
import pathlib
import re
import tomllib

import pytest

from odeformer import presets, solvers

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_repository_has_one_address():
    """pyproject.toml holds it; the notebooks, which install from it, agree."""
    address = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")
    for path in (ROOT / "colabs").glob("*.ipynb"):
        text = path.read_text()
        found = set(re.findall(r"github(?:\.com)?/([\w.-]+/odeformer)\b", text))
        assert found == {address}, path


def test_no_file_is_long():
    for folder in ("odeformer", "train", "configs", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, path


def test_readme_names_every_solver_and_preset():
    text = (ROOT / "README.md").read_text()
    for name in (*solvers.NAMES, *presets.VIT_NAMES, *presets.LM_NAMES, *presets.TEXT_NAMES):
        assert f"`{name}`" in text, name


@pytest.mark.slow
def test_readme_code_runs():
    """The library's examples, as a reader would paste them."""
    text = (ROOT / "README.md").read_text()
    images, texts = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[:2]
    scope: dict = {}
    exec(images, scope)
    assert scope["logits"].shape == (8, 10) and scope["solution"].result == 0
    scope = {}
    exec(texts, scope)
    assert scope["logits"].shape == (1, 5, 257) and scope["classes"].shape == (1, 2)
    assert [len(tokens) for tokens in scope["texts"]] == [8, 8]


@pytest.mark.parametrize("name", ["flops", "generate", "integrate", "lm", "presets", "text", "vit"])
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(f"odeformer.{name}"))
    assert result.attempted > 0 and result.failed == 0
