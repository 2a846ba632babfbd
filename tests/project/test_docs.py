"""The documentation site: its examples run, its links lead somewhere, its pages are all listed."""

import os
import re
import runpy
from collections.abc import Iterator

import pytest
import yaml

import odeformer
from odeformer import solvers
from tests.helpers.checkout import ROOT

DOCS = ROOT / "docs"
on_page_markdown = runpy.run_path(str(DOCS / "hooks.py"))["on_page_markdown"]
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))

# A fence of any length, its attributes, and what it holds.
FENCE = re.compile(r"^(`{3,})([^\n]*)\n(.*?)^\1[ ]*$", flags=re.DOTALL | re.MULTILINE)


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """The attributes and the code of each Python block of a page."""
    for _, attributes, code in FENCE.findall((DOCS / page).read_text()):
        if re.match(r"\{?\s*\.?(python|py)\b", attributes):
            yield attributes, code


def prose(page: str) -> str:
    """A page without its code, and with what it includes."""
    text = on_page_markdown((DOCS / page).read_text())
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown's `toc` makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", (DOCS / page).read_text()), re.MULTILINE)
    names = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[-\s]+", "-", name) for name in names}


def listed(nav) -> Iterator[str]:
    """The pages of the nav."""
    if isinstance(nav, str):
        yield nav
        return

    for entry in nav.values() if isinstance(nav, dict) else nav:
        yield from listed(entry)


# Whole training loops and adaptive gradients: longer than all other pages together.
LONG_PAGES = ("adaptive.md", "training-loop.md")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] * (page in LONG_PAGES))
        for page in PAGES
        if any(blocks(page))
    ],
)
def test_examples_run(page, tmp_path, monkeypatch, tables):
    """The blocks of a page, one after the other in one namespace; those that cannot run say why."""
    monkeypatch.chdir(tmp_path)
    scope: dict = {"__name__": page}

    for number, (attributes, code) in enumerate(blocks(page)):
        program = compile(code, f"docs/{page}, block {number}", "exec")
        if ".no-test" not in attributes:
            exec(program, scope)
            continue

        (reason,) = re.findall(r'reason="(.+?)"', attributes)
        print(f"docs/{page}, block {number}, is not run: {reason}")


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page):
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)|(?:src|href)=\"([^\"]+)\"", prose(page))
    for target in (a or b for a, b in targets):
        if re.match(r"[a-z]+:", target):
            continue

        path, _, anchor = target.partition("#")
        found = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
        assert (DOCS / found).is_file(), f"docs/{page} links to {target}"
        if anchor and found.endswith(".md") and not found.startswith("api/"):
            assert anchor in anchors(found), f"docs/{page} links to {target}"


def test_every_page_is_in_the_nav_once():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(listed(nav)) == PAGES


def test_the_reference_has_every_public_name():
    text = "\n".join((DOCS / page).read_text() for page in PAGES if page.startswith("api/"))
    names = re.findall(r"^::: odeformer\.(\w+)$", text, re.MULTILINE)
    assert sorted(names) == sorted(odeformer.__all__)


def test_the_site_fetches_nothing():
    """No web fonts, and no plugin or script from elsewhere."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert config["theme"]["font"] is False and config["strict"] is True
    assert "repo_url" not in config  # the theme would ask the host for stars
    assert "://" not in (ROOT / "mkdocs.yml").read_text()


def test_solver_tables_are_the_librarys():
    """Every solver is named on both pages, with what the library says of it."""
    row = re.compile(r"^\| `(\w+)` \| (\d) \| (\d+), (\d+) \| (yes|no) \|", re.MULTILINE)
    rows = row.findall((DOCS / "solvers.md").read_text())
    assert [name for name, *_ in rows] == list(solvers.NAMES)
    for name, order, attention, mlp, adaptive in rows:
        assert int(order) == solvers.order(name)
        assert [int(attention), int(mlp)] == solvers.evaluations(name, 2).tolist()
        assert (adaptive == "yes") == solvers.is_adaptive(name)

    idea = (DOCS / "idea.md").read_text()
    assert all(f"`{name}`" in idea for name in solvers.NAMES)


def test_docstrings_head_their_examples_as_the_reference_reads_them():
    """Under `Example:` the prompts `>>>` would be quotations."""
    for path in (ROOT / "odeformer").rglob("*.py"):
        assert not re.search(r"^ *Example:$", path.read_text(), re.MULTILINE), path
