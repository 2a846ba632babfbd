"""Every notebook runs from its first cell to its last, at a reduced size."""

import importlib.util
import re

import nbclient
import nbformat
import pytest

from tests.helpers.checkout import ROOT

NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))
REDUCED = {
    "depth": "train_steps, workdir, compared = 4, {workdir!r}, ('euler', 'midpoint')",
    "finetune": "train_steps, tuned_steps, workdir = 4, 2, {workdir!r}",
    "language": (
        "train_steps, width, workdir = 4, 16, {workdir!r}; "
        "new_tokens, compared = 8, ('euler', 'dopri8')"
    ),
    "pretrained": (
        "train_steps, workdir = 4, {workdir!r}; compared, steps = ('euler', 'dopri8'), (1, 2)"
    ),
    "quickstart": "train_steps, workdir, compared = 4, {workdir!r}, ('euler', 'rk4', 'dopri8')",
}

# What each prints.
PRINTED = {
    "depth": ("legendre, 3",),
    "finetune": ("from scratch", "weights trained of"),
    "language": ("dopri8",),
    "pretrained": ("dopri8",),
    "quickstart": ("dopri8",),
}


def test_there_are_notebooks_and_each_has_a_reduced_size():
    assert {path.stem for path in NOTEBOOKS} == set(REDUCED)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert notebook.metadata["accelerator"] == "TPU"
    assert "colab-badge.svg" in notebook.cells[0].source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_imports_exists(path):
    """Of this project; the long test runs the cells."""
    notebook = nbformat.read(path, as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    lines = re.findall(
        r"^from ((?:odeformer|train|configs)\b[\w.]*) import (.*)$", code, re.MULTILINE
    )
    assert lines
    for module, names in lines:
        for name in names.split(", "):
            found = importlib.import_module(module)
            assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}"), (
                module,
                name,
            )


@pytest.mark.slow
@pytest.mark.parametrize("name", REDUCED)
def test_notebook_runs(name, tmp_path):
    path = ROOT / "colabs" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    parameters.source = REDUCED[path.stem].format(workdir=str(tmp_path / "run"))
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute()
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert all(text in str(outputs) for text in PRINTED[name])
    if name == "pretrained":  # at its end: the exported program's logits against the model's
        assert float(outputs[-1]["data"]["text/plain"]) < 1e-5
