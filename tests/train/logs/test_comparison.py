"""Runs next to each other: curves in one picture, final scores in a table."""

import json

import pytest
from PIL import Image

from tests.helpers.programs import start
from tests.helpers.tiny import make_tiny
from train import inspect
from train.checkpoint.workdir import record_run
from train.config.border import from_config_dict
from train.errors import BadInput
from train.files import as_path
from train.logs.comparison import read_runs

LINES = [
    {"step": 1, "train/loss": 2.0},
    {"step": 2, "train/loss": 1.5, "val/loss": 1.75, "val/accuracy": 0.5},
    {"step": 3, "train/loss": None},  # was not finite
]


@pytest.fixture
def runs(tmp_path):
    """Two runs with metrics, the second without an accuracy, and one that has just begun."""
    for name in "abc":
        record_run(as_path(tmp_path / name), from_config_dict(make_tiny()), None)
    second = [{k: v for k, v in line.items() if k != "val/accuracy"} for line in LINES[:2]]
    for name, lines in {"a": LINES, "b": second}.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "metrics.jsonl").write_text(text)
    return [str(tmp_path / name) for name in "abc"]


def test_scores_and_curves(runs, tmp_path, monkeypatch, capsys):
    a, b, c = runs
    before = sorted(tmp_path.rglob("*"))
    start(monkeypatch, inspect, a, f"--compare={b},{c}", f"--curves={tmp_path}/abc.png")
    out = capsys.readouterr().out
    assert "final scores" in out and out.endswith(f"curves: {tmp_path}/abc.png\n")
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    assert [a, "3", "1.5000", "1.7500", "0.5000"] in cells
    assert [b, "2", "1.5000", "1.7500", ""] in cells

    # Three panels, and nothing else was written.
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "abc.png"])
    width, height = Image.open(tmp_path / "abc.png").size
    assert width == pytest.approx(3 * 5 / 4 * height, rel=0.01)
    assert list(read_runs(runs)) == [a, b]


def test_refusals(runs, tmp_path, monkeypatch):
    a, b, c = runs
    nowhere = f"--curves={tmp_path}/no/x.png"
    with pytest.raises(BadInput, match=f"{nowhere} cannot be written .No such file.*a folder that"):
        start(monkeypatch, inspect, a, f"--compare={b}", nowhere)
    with pytest.raises(BadInput, match="--curves goes with --compare"):
        start(monkeypatch, inspect, a, f"--curves={tmp_path}/x.png")
    with pytest.raises(BadInput, match="none of the runs has metrics yet"):
        start(monkeypatch, inspect, c, f"--compare={c}", f"--curves={tmp_path}/x.png")
