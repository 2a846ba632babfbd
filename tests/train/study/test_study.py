"""Studies: the rows of a grid, what they cost, matching, resuming, the tables."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict
from rich.console import Console

from odeformer import flops
from tests.helpers.checkout import ROOT
from tests.helpers.programs import run
from tests.helpers.tiny import make_tiny, make_tiny_language
from train.checkpoint.workdir import locked
from train.config.stored import to_json
from train.errors import BadInput
from train.loop import train
from train.study import report
from train.study.__main__ import run_study
from train.study.grid import from_study_dict, replica_config
from train.study.results import Results, declaration

RATES = dict(optimizer=dict(learning_rate=(1e-3, 3e-3, 9e-3)))


def make_study(**changes):
    study = ConfigDict()
    study.config = make_tiny()
    study.config.depth.update(layers=2, share=1)
    study.config.train_steps = 3
    study.grid = dict(depth=dict(share=(1, 2), solver=("lie_trotter", "euler", "rk4")))
    study.matched = dict(row="rk4", by="flops", solvers=("lie_trotter",))
    study.folds = 2
    study.seeds = (0,)
    study.update(changes)
    return study


@pytest.fixture(scope="module")
def study():
    return from_study_dict(make_study())


def test_folds_of_a_task_without_them():
    study = make_study()
    study.config = make_tiny_language()
    with pytest.raises(BadInput, match="folds=2: a run of task 'language' has a test split of its"):
        from_study_dict(study)


def test_rows_of_a_grid(study):
    names = [row.name for row in study.rows]
    assert names == [
        "lie_trotter, share 1",
        "euler, share 1",
        "rk4, share 1",
        "lie_trotter, share 2",
        "euler, share 2",
        "rk4, share 2",
        "lie_trotter, share 1, steps 4",
        "lie_trotter, share 2, steps 8",
    ]
    assert [replica.slug for replica in study.replicas] == ["fold0_seed0", "fold1_seed0"]
    rows = dict(zip(names, study.rows, strict=True))
    assert rows["rk4, share 1"].costs.nfe == 16
    parameters = {name: row.costs.parameters for name, row in rows.items()}
    assert parameters["euler, share 2"] == parameters["rk4, share 2"] < parameters["euler, share 1"]


def test_rows_of_several_grids():
    """Layers and shares that belong together; rows of one name would lie in one folder."""
    given = make_study()
    del given["grid"], given["matched"]
    shared, own = (dict(depth=dict(layers=(2,), share=(share,))) for share in (2, 1))
    given.grid = [shared, own]
    names = [row.name for row in from_study_dict(given).rows]
    assert names == ["rk4, share 2, layers 2", "rk4, share 1, layers 2"]

    given.grid = [shared, own, shared]
    with pytest.raises(BadInput, match="several rows the name 'rk4, share 2, layers 2'"):
        from_study_dict(given)


@pytest.mark.parametrize(
    ("by", "means"),
    [("parameters", "layers"), ("nfe", "layers"), ("flops", "layers"), ("nfe", "steps")],
)
def test_rows_are_matched(by, means):
    given = make_study(matched=dict(row="rk4", by=by, solvers=("lie_trotter",), means=(means,)))
    given.grid = dict(depth=dict(share=(1, 2), solver=("rk4",)))
    study = from_study_dict(given)
    rows = {row.name: row for row in study.rows}
    matched = [row for row in study.rows if row.match]
    assert len(matched) == 2
    for row in matched:
        target = rows[row.match[1]]
        assert row.match[0] == by and row.config.model.depth.solver == "lie_trotter"
        for one in (row, target):
            assert one.costs.training_flops == flops.training(one.config.model)
        if by == "flops":
            assert row.costs.inference_flops == target.costs.inference_flops
            assert row.costs.inference_flops == flops.forward(row.config.model)
        else:
            assert getattr(row.costs, by) == getattr(target.costs, by)


def test_rows_matched_in_steps_are_the_same_ode():
    """The same weights over the same interval: nothing differs but solver and steps."""
    study = make_study(matched=dict(row="rk4", by="flops", solvers=("euler",)))
    study.config.depth.layers = 6
    study.grid.depth.share = (1, 6)
    study = from_study_dict(study)
    rows = {row.name: row for row in study.rows}
    matched = {row.name: row for row in study.rows if row.match}
    assert [*matched] == ["euler, share 1, steps 4", "euler, share 6, steps 24"]
    for row in matched.values():
        depth, target = row.config.model.depth, rows[row.match[1]].config.model.depth
        assert replace(depth, solver=target.solver, steps=target.steps) == target
        models = row.config.model, rows[row.match[1]].config.model
        assert len({flops.forward(model) for model in models}) == 1


def test_claims_are_those_of_the_paper(study):
    claims = [(claim.text, claim.row, claim.baseline) for claim in study.claims]
    for share in (1, 2):
        parallel, sequential = f"euler, share {share}", f"lie_trotter, share {share}"
        assert ("parallel beats sequential", parallel, sequential) in claims
        higher = "higher order beats the parallel layer"
        assert (higher, f"rk4, share {share}", parallel) in claims
    assert ("sharing weights costs accuracy", "rk4, share 2", "rk4, share 1") in claims
    assert ("the same at equal flops", "rk4, share 1", "lie_trotter, share 1, steps 4") in claims
    assert len(claims) == 4 + 3 + 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(grid=dict(depth=dict(solvr=("rk4",)))), "Did you mean 'depth.solver'"),
        (
            dict(matched=dict(row="rk4", by="time", solvers=())),
            "study.matched.by is one of parameters, nfe, flops; time",
        ),
        (
            dict(matched=dict(row="rk4", by="parameters", solvers=())),
            "changes no parameter; take means=",
        ),
        (dict(seeds=()), "study.seeds is one or more seeds, whole numbers from 0 on"),
        (dict(seeds=(1, 1)), "study.seeds is one or more seeds, .*each of them once"),
        (dict(seeds=(4294968,)), "study.seeds is .* below 4,294,967"),
        (dict(lengths=(6, 3)), "study.lengths is .*in ascending order"),
        (dict(margin=0.0), "study.margin is greater than 0"),
        (dict(metric="f1"), "study.metric is one of accuracy, loss; f1"),
        (dict(tune=dict(seeds=(5,))), "tune.grid is missing"),
        (dict(tune=dict(grid=RATES, seeds=(0,))), "tune.seeds and seeds both hold 0"),
        (dict(tune=dict(grid=RATES)), "set config.data.validation_examples, say to 200"),
        (dict(tune=dict(grid=RATES, step=3)), "unknown key 'tune.step'.*Did you mean 'tune.steps'"),
        (
            dict(tune=dict(grid=RATES, steps=2), folds=None),
            r"warmup_steps=2 does not lie in \[0, train_steps=2\)",
        ),
        (dict(contrasts=(("a", "euler, share 1"),)), "a contrast is .claim, row, baseline."),
        (
            dict(contrasts=(("a", "euler, share 1", "eule, share 2"),)),
            "unknown row 'eule, share 2'.*Did you mean 'euler, share 2'",
        ),
        (dict(contrasts=(("a", "rk4, share 1", "rk4, share 1"),)), "compared with itself"),
        (dict(seeds=("1",)), "study.seeds is one or more seeds, whole numbers from 0 on"),
        (dict(folds=1), "study.folds is 2 or more; 1 was given"),
        (dict(rows=3), "unknown key 'rows'"),
        (dict(grid=dict(depth=dict(solver=("tsit5",), rtol=(0.1,)))), "rows have fixed steps"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(BadInput, match=message):
        from_study_dict(make_study(**changes))


def test_a_length_that_only_a_later_row_refuses():
    """Before anything runs: the first row has no refinement."""
    study = small(lengths=(3, 6))
    study.config.train_steps = 6
    refined = dict(depth=dict(solver=("rk4",), share=(2,), refine_at=((4,),)))
    del study["grid"]
    study.grid = [dict(depth=dict(solver=("euler",))), refined]

    with pytest.raises(BadInput, match=r"refine_at=\[4\] does not lie below train_steps=3"):
        from_study_dict(study)


def small(**changes):
    study = make_study(**changes)
    study.matched = None
    study.grid = dict(depth=dict(solver=("lie_trotter", "euler")))
    return study


def test_a_replica_has_its_own_seed_and_fold():
    """And is otherwise its row; no two replicas share a seed."""
    study = from_study_dict(small(seeds=(3, 5)))
    row = study.rows[0]
    configs = [replica_config(row, replica) for replica in study.replicas]
    assert [(config.seed, config.data.fold) for config in configs] == [
        (3000, 0),
        (3001, 1),
        (5000, 0),
        (5001, 1),
    ]

    for config in configs:
        data = replace(config.data, fold=row.config.data.fold)
        assert replace(config, seed=row.config.seed, data=data) == row.config


def test_a_claims_difference_is_the_row_minus_the_baseline():
    """Means of accuracies that are known, in points and in nats."""
    study = from_study_dict(small())
    reached = {"euler": (0.75, 0.5), "lie_trotter": (0.25, 0.25)}
    losses = {"euler": (0.25, 0.5), "lie_trotter": (1.0, 0.75)}
    runs = [
        dict(row=f"{solver}, share 1", fold=fold, seed=0, steps=3, values={}, secs_per_step=None)
        | {"test/accuracy": reached[solver][fold], "test/loss": losses[solver][fold]}
        | dict(train_examples=80, test_examples=20)
        for solver in reached
        for fold in (0, 1)
    ]
    for metric, effect in (("accuracy", "+37.50"), ("loss", "-0.5000")):
        declared = declaration(study) | {"metric": metric}
        table = report.markdown(Results(declared, runs, []))
        line = next(line for line in table.splitlines() if "parallel beats sequential" in line)
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1] == "euler, share 1 against lie_trotter, share 1"

        # (50 + 25) / 2 points, -(0.75 + 0.25) / 2 nats.
        assert cells[2].split()[0] == effect and "at 3 steps alone" in cells[3]


def test_a_study_runs_stops_and_goes_on(tmp_path, monkeypatch):
    study, runs = from_study_dict(small(seeds=(4,))), []
    from train.study import __main__ as program

    def counted(config, workdir, programs):
        runs.append((config.model.depth.solver, config.data.fold, config.seed))
        if len(runs) == 3:
            raise KeyboardInterrupt
        return train(config, workdir, programs=programs)

    monkeypatch.setattr(program, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path, Console(quiet=True))
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
    run_study(study, tmp_path, Console(quiet=True))
    # replica by replica; the run that was interrupted is begun again, the finished ones are not
    first, second = (
        [(solver, fold, 4000 + fold) for solver in ("lie_trotter", "euler")] for fold in (0, 1)
    )
    assert runs == [*first, second[0], *second]

    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and {line["seed"] for line in lines} == {4}
    table = (tmp_path / "table.md").read_text()
    of_euler = [100 * line["test/accuracy"] for line in lines if line["row"] == "euler, share 1"]
    assert f"| {np.mean(of_euler):.2f} ± " in table
    assert table.count("| parallel beats sequential |") == 2  # the verdict, and the figures
    assert (tmp_path / "plot.svg").read_text().count("<svg") == 1

    held = {path: path.read_bytes() for path in tmp_path.glob("*.*") if path.is_file()}
    (tmp_path / "runs" / ".DS_Store").touch()  # as macOS leaves it
    for solver in (("rk4",), ("lie_trotter",)):
        other = small(seeds=(4,))
        other.grid = dict(depth=dict(solver=solver))
        with pytest.raises(BadInput, match="holds runs of another study: euler_share1/fold0_seed4"):
            run_study(from_study_dict(other), tmp_path, Console(quiet=True))
    with locked(epath.Path(tmp_path)), pytest.raises(BadInput, match="is in use"):
        run_study(study, tmp_path, Console(quiet=True))
    other = small(seeds=(4,))
    other.config.optimizer.learning_rate = 1.0
    with pytest.raises(BadInput, match="optimizer.learning_rate: 0.003 in the workdir, 1.0 given"):
        run_study(from_study_dict(other), tmp_path, Console(quiet=True))
    assert {path: path.read_bytes() for path in held} == held


def test_a_study_may_grow(tmp_path, monkeypatch):
    """And what is held under another config is refused before a run of it begins."""
    monkeypatch.setattr(
        "train.study.__main__.train", lambda *args, programs: pytest.fail("it was begun")
    )
    folder = tmp_path / "runs" / "lie_trotter_share1" / "fold1_seed0"
    folder.mkdir(parents=True)
    for name in ("test_scores.npz", "curves.png"):
        (folder / name).touch()
    study = from_study_dict(small())
    config = replica_config(study.rows[0], study.replicas[1])
    (folder / "config.json").write_text(to_json(config))
    with pytest.raises(pytest.fail.Exception, match="it was begun"):
        run_study(study, tmp_path, Console(quiet=True))
    changed = replace(config.optimizer, learning_rate=1.0)
    (folder / "config.json").write_text(to_json(replace(config, optimizer=changed)))
    with pytest.raises(BadInput, match="optimizer.learning_rate: 1.0 in the workdir"):
        run_study(study, tmp_path, Console(quiet=True))


def test_tables_are_made_from_the_results_alone(tmp_path):
    """By --render, where the runs themselves are gone; one table of claims for all studies."""
    study = from_study_dict(small(seeds=(4,)))
    lines = [
        dict(row=row.name, fold=fold, seed=4, steps=3, values={}, secs_per_step=0.5)
        | {"test/accuracy": 0.5, "test/loss": 1.0, "train_examples": 8, "test_examples": 2}
        for row in study.rows
        for fold in (0, 1)
    ]
    (tmp_path / "study.json").write_text(json.dumps(declaration(study)))
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run("train.study", f"--render={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert (
        tmp_path / "table.md"
    ).read_text() in done.stdout and "| digits, width 16 |" in done.stdout
    assert "500.0 | 50.00 ± 0.00" in done.stdout

    bad = run("train.study", f"--render={tmp_path / 'nowhere'}")
    assert bad.returncode == 2 and "holds no study.json: give the workdir of a study" in bad.stderr


@pytest.mark.slow
def test_dry_run_as_a_user_starts_it():
    command = [sys.executable, "-m", "train.study", "--study=configs/studies/digits.py"]
    done = subprocess.run(
        [*command, "--dry_run", "--study.folds=3"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (
        "12 rows, 6 replicas and 3 trials each: 108 runs" in done.stdout
        and "recomputed" in done.stdout
    )
