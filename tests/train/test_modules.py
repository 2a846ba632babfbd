"""Modules of a user's own: imported when named, recorded, reported, and never from a workdir."""

import contextlib
import json
import sys

import pytest

from tests.helpers.programs import interrupt_at_second_score, run, timeless
from tests.helpers.tables import names_taken_back
from train import loop
from train.checkpoint.metadata import read_metadata
from train.checkpoint.workdir import read_config
from train.config import modules
from train.config.border import from_config_dict
from train.config.modules import import_modules, missing
from train.config.stored import to_json
from train.errors import BadInput
from train.logs.metrics import read_metrics

PARTS = '''
"""A solver, a term, an optimiser, a schedule, a data set, a task and a metric of one's own."""

import diffrax
import flax.linen as nn
import jax
import numpy as np
import optax

from odeformer import solvers, terms
from train import tasks
from train.data import sources
from train.data.images import digits
from train.optimizer import register, register_schedule
from train.tasks.images import ImageTask


@solvers.register("kutta3")
class Kutta3(diffrax.AbstractERK):
    """Kutta's third-order method (Kutta 1901)."""

    tableau = diffrax.ButcherTableau(
        c=np.array([1 / 2, 1.0]),
        a_lower=(np.array([1 / 2]), np.array([-1.0, 2.0])),
        b_sol=np.array([1 / 6, 2 / 3, 1 / 6]),
        b_error=np.zeros(3),
    )
    interpolation_cls = diffrax.LocalLinearInterpolation

    def order(self, terms):
        return 3


class Scale(nn.Module):
    """A factor for each channel, 0 at first."""

    @nn.compact
    def __call__(self, x_BND, context=None):
        return self.param("factor", nn.initializers.zeros, x_BND.shape[-1:])[None, None] * x_BND


@terms.register("my_scale")
def my_scale():
    return terms.Term(
        make=lambda config: Scale(),
        flops=lambda config, tokens: 0,
        causal=True,
        decoding="tokenwise",
    )


@register("my_sign")
def my_sign(config, rate):
    moment = optax.trace(config.b1)
    return optax.chain(moment, optax.scale_by_sign(), optax.scale_by_learning_rate(rate))


@register_schedule("my_steps")
def my_steps(config, steps):
    return optax.piecewise_constant_schedule(config.learning_rate, {steps // 2: 0.1})


@sources.register("my_digits")
def my_digits(data):
    return digits.load(data.fold)


@tasks.register("my_task", like="images")
class MyTask(ImageTask):
    unit = "scans"


@tasks.register_metric("my_top2", better="higher")
def my_top2(logits, batch):
    return (jax.lax.top_k(logits, 2)[1] == batch["label"][:, None]).any(axis=-1)
'''

CONFIG = """
from tests.helpers.tiny import make_tiny


def get_config():
    cfg = make_tiny()
    cfg.modules = ("{file}",)
    cfg.task, cfg.data.name, cfg.depth.solver = "my_task", "my_digits", "kutta3"
    cfg.model.terms = ("attention", "mlp", "my_scale")
    cfg.optimizer.update(name="my_sign", schedule="my_steps", learning_rate=1e-3)
    cfg.eval.metrics, cfg.checkpoint.best = ("my_top2",), "val/my_top2"
    return cfg
"""


TEXT_CONFIG = """
from tests.helpers.tiny import make_tiny_language


def get_config():
    cfg = make_tiny_language()
    cfg.modules, cfg.train_steps, cfg.optimizer.warmup_steps = ("{file}",), 2, 1
    cfg.depth.solver, cfg.model.terms = "kutta3", ("my_scale", "attention", "mlp")
    return cfg
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A file of parts, a config that names it, and a run with them."""
    folder = tmp_path_factory.mktemp("own")
    parts, config, workdir = folder / "my_parts.py", folder / "config.py", folder / "run"
    parts.write_text(PARTS)
    config.write_text(CONFIG.format(file=parts))
    with forgotten():
        done = run("train", f"--config={config}", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return parts, config, workdir


@contextlib.contextmanager
def forgotten():
    """A context that begins and ends without any module of a user's own."""
    modules._IMPORTED.clear()
    with names_taken_back():
        yield
    modules._IMPORTED.clear()


@pytest.fixture
def fresh():
    with forgotten():
        yield


def test_a_run_with_parts_of_its_own_records_them(own, fresh):
    parts, _, workdir = own
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["modules"] == [str(parts)] and stored["optimizer"]["name"] == "my_sign"
    assert 0 < read_metrics(workdir)[-1]["test/my_top2"] <= 1

    # What a workdir names is not imported by itself: its names are unknown, and said.
    with pytest.raises(BadInput, match=f"not imported here .*--modules={parts}"):
        read_config(workdir)
    assert missing([str(parts)]) == [str(parts)]
    import_modules([str(parts)])
    assert read_config(workdir).modules == (str(parts),)


def test_a_workdir_runs_no_code(fresh, tiny, tmp_path):
    """Its modules are named, by a warning where no name of theirs is needed."""
    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()")
    tiny.modules = (str(tmp_path / "evil.py"),)
    (tmp_path / "config.json").write_text(to_json(from_config_dict(tiny)))

    assert read_config(tmp_path).modules == tiny.modules
    done = run("train.evaluate", f"--workdir={tmp_path}")
    assert done.returncode == 2 and "holds no checkpoint" in done.stderr
    assert "warning: " in done.stderr and f"give --modules={tmp_path}/evil.py" in done.stderr
    assert not ran.exists()
    run("train.evaluate", f"--workdir={tmp_path}", f"--modules={tmp_path}/evil.py")
    assert ran.exists()


def test_programs_take_modules(own, fresh):
    parts, _, workdir = own
    at = f"--workdir={workdir}"
    for program in ("train.evaluate", "train.inspect"):
        with forgotten():
            refused = run(program, at)
            assert refused.returncode == 2 and f"--modules={parts}" in refused.stderr
            assert "Traceback" not in refused.stderr

    with forgotten():
        shown = run("train.inspect", at, f"--modules={parts}")
        assert shown.returncode == 0 and "my_task (my_digits)" in shown.stdout, shown.stderr
    with forgotten():
        scored = run("train.evaluate", at, f"--modules={parts}")
        assert scored.returncode == 0 and "my_top2" in scored.stdout, scored.stderr
    with forgotten():
        listed = run("train", "--help", f"--modules={parts}").stdout
        assert "muon, my_sign." in listed and "--modules" in listed
    with forgotten():
        refused = run("train.generate", at, f"--modules={parts}", "--prompt=a")
        assert refused.returncode == 2 and "holds a run of task 'my_task'" in refused.stderr


def test_text_is_generated_by_its_own_solver_and_term(own, tmp_path):
    parts, _, _ = own
    config, workdir = tmp_path / "text.py", tmp_path / "run"
    config.write_text(TEXT_CONFIG.format(file=parts))
    with forgotten():
        done = run("train", f"--config={config}", f"--workdir={workdir}")
        assert done.returncode == 0, done.stderr

    flags = (f"--workdir={workdir}", "--prompt=The", "--max_new_tokens=4", "--temperature=0")
    with forgotten():
        refused = run("train.generate", *flags)
        assert refused.returncode == 2 and f"--modules={parts}" in refused.stderr
    with forgotten():
        done = run("train.generate", *flags, f"--modules={parts}")
        assert done.returncode == 0 and done.stdout.startswith("The"), done.stderr


def test_a_run_of_its_own_parts_resumes_bit_for_bit(own, tmp_path):
    _, config, whole = own
    given = json.loads((whole / "config.json").read_text())  # whose modules are imported
    with forgotten(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.run.score", interrupt_at_second_score())
        with pytest.raises(KeyboardInterrupt):
            loop.train(given, tmp_path)
    with forgotten():
        done = run("train", f"--config={config}", f"--workdir={tmp_path}")
        assert done.returncode == 0 and "not imported" not in done.stderr, done.stderr
    assert read_metadata(tmp_path, 6).leaves == read_metadata(whole, 6).leaves
    assert list(map(timeless, read_metrics(tmp_path))) == list(map(timeless, read_metrics(whole)))


def test_flags_name_modules_too(own, fresh, capsys):
    """In the place of the file's, or in addition to it; a file that lies elsewhere is the same."""
    parts, _, workdir = own
    import_modules([str(parts)])
    assert missing(["/elsewhere/my_parts.py", "json", "/elsewhere/other.py"]) == [
        "json",
        "/elsewhere/other.py",
    ]
    assert import_modules(["json"]) == ("json",) and missing(["json"]) == []
    modules.warn_of_missing(workdir, ["my_parts.py", "gone.py"])
    assert "not imported here: if you trust them, give --modules=gone.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import odeformer\n\n\nx = undefined\n",
            "line 4 of .*bad.py: NameError: name",
        ),
        ("def f(:\n    pass\n", "line 1 of .*bad.py: SyntaxError: "),
        ("def f():\n    return 1 / 0\n\nf()\n", "line 2 of .*bad.py: ZeroDivisionError"),
        ("import no_such_module_at_all\n", "line 1 of .*bad.py: ModuleNotFoundError"),
        ("raise SystemExit(3)\n", "line 1 of .*bad.py: SystemExit: 3"),
        (
            "from train.optimizer import register\nregister('muon', print)\n",
            "line 2 of .*bad.py: BadInput: optimizer 'muon': the name is taken",
        ),
    ],
)
def test_a_module_that_cannot_be_imported(fresh, tmp_path, text, message):
    bad = tmp_path / "bad.py"
    bad.write_text(text)
    before = set(sys.modules)
    with pytest.raises(BadInput, match=f"config.modules: {bad} cannot be imported: {message}"):
        import_modules([str(bad)])
    assert not [name for name in set(sys.modules) - before if name.startswith("bad_")]


def test_what_is_no_module(fresh, tiny, tmp_path):
    with pytest.raises(BadInput, match="nowhere.py is not a file: name a Python file"):
        import_modules([str(tmp_path / "nowhere.py")])
    with pytest.raises(BadInput, match="no_such_module_at_all cannot be imported: Module"):
        import_modules(["no_such_module_at_all"])
    tiny.modules = (7,)
    with pytest.raises(BadInput, match=r"config.modules is a list of names of .*; \(7,\) was"):
        loop.train(tiny, tmp_path / "run")
    assert not (tmp_path / "run").exists()
