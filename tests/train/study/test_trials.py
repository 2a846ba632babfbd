"""What the runs of a study share, and how each row's own values are chosen before them."""

import json

import numpy as np
import pytest
from rich.console import Console

from tests.train.study.test_study import RATES, small
from train.checkpoint import load_model
from train.config.border import from_config_dict, to_dict
from train.config.stored import to_json
from train.data.sources import load_splits
from train.devices.mesh import device_mesh
from train.errors import BadInput, RunDiverged, RunError
from train.logs.metrics import read_metrics
from train.loop import train
from train.optimizer import make_optimizer
from train.programs import Programs
from train.study.__main__ import run_study
from train.study.grid import from_study_dict, replica_config
from train.study.tuning import best_of
from train.tasks import make_task


def test_seeds_and_folds_share_their_programs(tmp_path):
    """And each replica has weights and an order of its own; the next length compiles again."""
    study, programs = from_study_dict(small(seeds=(3, 5), lengths=(3, 6))), Programs()
    row, weights, orders, sizes = study.rows[0], [], [], []
    for replica in study.replicas[:3]:
        config = replica_config(row, replica)
        train(config, tmp_path / replica.slug, programs=programs)
        _, variables = load_model(tmp_path / replica.slug)
        weights.append(np.asarray(variables["params"]["head"]["kernel"]))
        orders.append(read_metrics(tmp_path / replica.slug)[0]["train/loss"])
        kept = {key[0]: kept for key, kept in programs._kept.items() if key[0] != "splits"}
        sizes.append({name: jitted._cache_size() for name, jitted in kept.items()})

    # Validation and test have batches of two sizes.
    assert sizes == [{"init": 1, "train": 1, "eval": 2}] * 3
    for values in (weights, orders):
        assert len({np.asarray(value).tobytes() for value in values}) == 3

    # What was kept changes nothing: the last replica, alone.
    train(config, tmp_path / "alone")
    _, variables = load_model(tmp_path / "alone")
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], weights[-1])
    assert study.replicas[4].steps == 6 and replica_config(row, study.replicas[4]).train_steps == 6


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({"seed": 5}, ["train", "eval"]),
        ({"optimizer.learning_rate": 0.5}, ["eval"]),
        ({"train_steps": 9}, ["eval"]),
        ({"depth.solver": "strang"}, []),
        ({"model.dropout": 0.5}, []),
    ],
)
def test_runs_share_no_program_that_is_another_one_for_them(changes, shared):
    """Nothing is compiled: what is kept under a key is what a later run is given."""
    study, programs = from_study_dict(small()), Programs()
    first = replica_config(study.rows[0], study.replicas[0])
    mesh, kept = device_mesh(first.mesh), []
    task = make_task(first, load_splits(first)["train"])
    for config in (first, from_config_dict(to_dict(first), changes)):
        optimizer = make_optimizer(config.optimizer, config.train_steps)
        programs.train_step(config, optimizer, task, mesh)
        programs.eval_step(config, task, mesh)
        kept.append(set(programs._kept))
    new = {name for name, *_ in kept[1] - kept[0]}
    assert new == {"train", "eval"} - set(shared)


def tuned(**changes):
    study = small(seeds=(4, 5), tune=dict(grid=RATES, steps=2, seeds=(900,)), margin=1.0, **changes)
    study.config.data.validation_examples = 200
    study.config.optimizer.warmup_steps = 1
    return study


def test_rows_are_tuned_before_they_are_compared(tmp_path, monkeypatch):
    """By validation loss alone, on a seed that no run has; what diverged is never chosen."""
    from train.study import __main__ as program

    study, started = from_study_dict(tuned()), []

    def pretended(config, workdir, programs):
        """Runs as they would be found, but for the training."""
        rate, solver = config.optimizer.learning_rate, config.model.depth.solver
        workdir.mkdir(parents=True)
        (workdir / "config.json").write_text(to_json(config))
        started.append((workdir.parent.parent.name, solver, rate, config.seed, config.train_steps))
        if (solver, rate) == ("euler", 1e-3):
            raise RunDiverged("the run diverged")

        best = {"lie_trotter": 3e-3, "euler": 9e-3}[solver]
        lines = [{"step": 2, "val/loss": 0.1}, {"step": 2, "val/loss": 1 + abs(rate - best)}]
        lines.append({"step": 2, "test/accuracy": rate, "test/loss": 0.0})
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        for name in ("test_scores.npz", "curves.png"):
            (workdir / name).touch()
        if workdir.parent.parent.name == "runs":
            raise KeyboardInterrupt

    monkeypatch.setattr(program, "train", pretended)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path, Console(quiet=True))
    rates = (1e-3, 3e-3, 9e-3)
    solvers = ("lie_trotter", "euler")
    trials = [("trials", solver, rate, 900000, 2) for solver in solvers for rate in rates]
    assert started == [*trials, ("runs", "lie_trotter", 3e-3, 4000, 3)]

    # Nothing that is finished begins again, what diverged included.
    started.clear()
    monkeypatch.setattr(program, "run_line", lambda *args, **kwargs: {})
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path, Console(quiet=True))
    assert started == [("runs", "euler", 9e-3, 4000, 3)]

    # What would count as yes was fixed before the first run.
    other = tuned()
    other.margin = 2.0
    with pytest.raises(BadInput, match=r"margin was declared as 1.0 before the first run; 2.0"):
        run_study(from_study_dict(other), tmp_path, Console(quiet=True))


def test_a_choice_at_the_edge():
    rate = lambda *values: [((("optimizer.learning_rate", value),), value) for value in values]
    losses = dict(rate(1e-3, 3e-3, 9e-3))
    low = best_of(losses, "a")
    assert low.values == {"optimizer.learning_rate": 1e-3}
    assert low.edges == ("optimizer.learning_rate",)
    middle = best_of({**losses, rate(3e-3)[0][0]: 0.0}, "a")
    assert middle.values == {"optimizer.learning_rate": 3e-3} and middle.edges == ()
    with pytest.raises(RunError, match="every trial of row 'a' diverged"):
        best_of(dict.fromkeys(losses, float("inf")), "a")
    assert best_of({}, "a").values == {}
