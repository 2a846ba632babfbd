"""The lines of results.jsonl, from which alone, with study.json, every table is made."""

import base64
import dataclasses
import json
import math
import statistics
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from train.checkpoint.metadata import read_metadata
from train.checkpoint.workdir import saved_steps
from train.config.run import RunConfig
from train.errors import BadInput
from train.files import as_path
from train.logs.metrics import read_metrics, read_scores
from train.study.folders import DECLARED, run_folder, trial_folder
from train.study.grid import Replica, Study, Trial
from train.study.rows import Row
from train.study.tuning import Choice, validation_loss

FILE = "results.jsonl"

# By metric: the score of an example, and what a test metric is multiplied by (points of accuracy).
SCORES = {"accuracy": ("correct", 100.0), "loss": ("loss", 1.0)}


@dataclasses.dataclass(frozen=True)
class Results:
    """What a study's folder holds: what was declared, and a line per run and per trial."""

    declared: Mapping[str, Any]
    runs: list[dict[str, Any]]
    trials: list[dict[str, Any]]

    @property
    def lengths(self) -> list[int]:
        """The numbers of steps of which there are runs; those declared, if there are none yet."""
        there = {line["steps"] for line in self.runs}
        return [n for n in self.declared["lengths"] if n in there] or self.declared["lengths"]

    def of_row(self, name: str, steps: int) -> dict[tuple[int, int], dict[str, Any]]:
        """Returns the lines of a row's runs of that length, by (fold, seed); fold 0 if none."""
        return {
            (line["fold"] or 0, line["seed"]): line
            for line in self.runs
            if line["row"] == name and line["steps"] == steps
        }


def declaration(study: Study) -> dict[str, Any]:
    """Returns what a study compares and by which rule, as values for JSON."""
    settings, config = study.settings, study.rows[0].config
    tune = None
    if settings.tune is not None:
        tune = dataclasses.asdict(settings.tune)
        tune["trials"] = [[dict(trial.values), trial.replica.seed] for trial in study.trials]

    return {
        "task": config.task,
        "on": f"{config.data.name}, width {config.model.width}",
        "metric": study.metric,
        "margin": settings.margin,
        "folds": settings.folds,
        "seeds": settings.seeds,
        "lengths": settings.lengths or (config.train_steps,),
        "tune": tune,
        "contrasts": [dataclasses.asdict(claim) for claim in study.claims],
        "rows": [_row_facts(row) for row in study.rows],
    }


def _row_facts(row: Row) -> dict[str, Any]:
    depth = row.config.model.depth
    return {
        "name": row.name,
        "solver": depth.solver,
        "share": depth.share,
        "layers": depth.layers,
        "steps_per_group": depth.fixed_steps,
        "match": row.match,
        **dataclasses.asdict(row.costs),
    }


def run_line(
    study: Study,
    row: Row,
    replica: Replica,
    *,
    config: RunConfig,
    path: epath.Path,
    choice: Choice,
) -> dict[str, Any]:
    """Returns a run's line.

    Args:
      study: of which it is a run.
      row: that was trained.
      replica: its fold, seed and steps.
      config: that it was trained with.
      path: of the study's workdir.
      choice: the row's tuned values.
    """
    folder = run_folder(path, row, replica)
    lines, score = read_metrics(folder), read_scores(folder)[SCORES[study.metric][0]]
    test = {name: value for name, value in lines[-1].items() if name.startswith("test/")}

    # A run that is too short logs no speed.
    speeds = [speed for line in lines if (speed := line.get("train/steps_per_sec"))]

    return {
        "row": row.name,
        "fold": replica.fold,
        "seed": replica.seed,
        "run_seed": config.seed,
        "steps": config.train_steps,
        "values": choice.values,
        **dataclasses.asdict(row.costs),
        **test,
        "val/loss": validation_loss(folder),
        "train_examples": read_metadata(folder, max(saved_steps(folder))).examples,
        "test_examples": len(score),
        "secs_per_step": 1 / statistics.median(speeds) if speeds else None,
        "examples": encode(score),
    }


def trial_line(row: Row, trial: Trial, path: epath.Path) -> dict[str, Any]:
    """Returns a trial's line; what it reached on test images is not read."""
    loss = validation_loss(trial_folder(path, row, trial))
    return {
        "trial": dict(trial.values),
        "row": row.name,
        "seed": trial.replica.seed,
        "run_seed": trial.replica.run_seed,
        "steps": trial.replica.steps,
        "val/loss": loss if math.isfinite(loss) else None,
    }


def encode(scores: np.ndarray) -> str:
    """Returns the scores of examples [N], float32, as text."""
    packed = zlib.compress(np.asarray(scores, "<f4").tobytes(), 9)
    return base64.b64encode(packed).decode()


def decode(text: str) -> np.ndarray:
    """Returns what `encode` was given, as float64, in which differences are averaged."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<f4").astype(np.float64)


def read_results(workdir: str | epath.Path) -> Results:
    """Returns what a study's folder holds.

    Raises:
      BadInput: it holds no study, or one of an earlier version.
    """
    path = as_path(workdir)
    for name in (DECLARED, FILE):
        if not (path / name).exists():
            raise BadInput(
                f"{workdir} holds no {name}: give the workdir of a study; those of earlier "
                "versions, which declared nothing, have to be run again"
            )

    lines = [json.loads(line) for line in (path / FILE).read_text().splitlines()]
    return Results(
        declared=json.loads((path / DECLARED).read_text()),
        runs=[line for line in lines if "trial" not in line],
        trials=[line for line in lines if "trial" in line],
    )
