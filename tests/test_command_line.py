"""Flags: overrides reach the config, and what does not fit is refused in words."""

import io
import sys

import pytest
from absl import flags
from conftest import start
from rich.console import Console
from rich.table import Table

from configs import common
from train import __main__
from train.aot import __main__ as aot
from train.command_line import define_path, flag_value, parse_with_config, run
from train.config import overrides
from train.config.run import flatten, for_evaluation, from_config_dict
from train.errors import BadInput
from train.logs.progress import RunProgress

DIGITS = "--config=configs/digits.py"


def parse(*args, cfg=None):
    values = flags.FlagValues()
    define_path("workdir", "", values)
    return parse_with_config(["program", *args], values, cfg), values


def test_overrides_reach_the_config():
    cfg, values = parse(DIGITS, "--config.depth.rtol=1e-3", "--workdir=x", "--config.seed=7")
    assert (cfg.depth.rtol, cfg.seed, values.workdir) == (1e-3, 7, "x")


def test_a_runs_own_config_can_be_overridden(tiny):
    cfg, _ = parse("--config.depth.solver=tsit5", "--config.depth.steps=3", cfg=tiny)
    assert (cfg.depth.solver, cfg.depth.steps, cfg.train_steps) == ("tsit5", 3, 6)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([DIGITS, "--config.depth.solvr=rk4"], "unknown config key .*Did you mean 'depth.solver'"),
        (
            [DIGITS, "--config.depth.rtol=tiny"],
            "config.depth.rtol takes float or None; tiny was given",
        ),
        ([DIGITS, "--config.depth.steps=1.5"], "config.depth.steps takes int or None; 1.5 was"),
        ([DIGITS, "--config.seed=None"], "config.seed takes int; None was given"),
        ([DIGITS, "--config.data.name=None"], "config.data.name takes str; None was given"),
        (
            [DIGITS, "--config.data.augment.zoom", "None"],
            "config.data.augment.zoom takes float; No",
        ),
        ([DIGITS, "--config.model.pool=None"], "config.model.pool takes str; None was given"),
        (
            [DIGITS, "--config.model.image_size=8x16"],
            "config.model.image_size takes int or 2 numbers with commas; 8x16 was given",
        ),
        ([DIGITS, "--workdir=~no-one-of-this-name/x"], "~no-one-of-this-name is nobody's home"),
        ([DIGITS, "--config.train_steps=1.5"], "train_steps=1.5"),
        (
            [DIGITS, "--wrkdir=x"],
            "unknown flag '--wrkdir'; accepted: --workdir, --config, .*'--workdir'",
        ),
        ([DIGITS, "digits"], "unexpected argument 'digits'"),
        (["--config=configs/digit.py"], "configs/digit.py is not a file"),
        ([], "--config is missing"),
        (["--config=README.md"], "README.md does not give a config"),
        (["--config=configs/digits.py:size=cpu"], "does not give a config: TypeError"),
        (["--config=configs/cifar.py:size=big"], "unknown value in 'size=big'; accepted: accel"),
    ],
)
def test_refusals(args, message):
    with pytest.raises(BadInput, match=message):
        parse(*args)


OPTIONAL = {  # every key that may be without a value -> another value of it
    "optimizer.clip_norm": 2.0,
    "optimizer.ema_decay": 0.5,
    "guard.sigmas": 3.0,
    "depth.rtol": 0.1,
    "depth.atol": 0.1,
    "depth.steps": 3,
    "depth.max_steps": 9,
    "depth.policy": "dots_saveable",
    "data.data_dir": "/x",
    "data.fold": 3,
    "checkpoint.spare_dir": "/x",
    "checkpoint.best": "val/accuracy",
}


@pytest.mark.parametrize("loaded", [True, False])
def test_none_is_none(loaded):
    base = common.get_digits()
    keys = {k for k, hint in overrides.hints_of(base).items() if "None" in str(hint)}
    assert keys == OPTIONAL.keys()
    for key, value in OPTIONAL.items():
        for before in ([], [f"--config.{key}={value}"]):  # whatever the key's value was
            given = [DIGITS, *before] if loaded else before
            cfg, _ = parse(*given, f"--config.{key}=None", cfg=None if loaded else base)
            assert flatten(cfg.to_dict())[key] is None, key
            cfg.update_from_flattened_dict({key: value})  # as a study's grid does
            assert flatten(cfg.to_dict())[key] == value


def test_a_value_for_none():
    """Of a config file whose None is no placeholder, too."""
    cfg = common.get_digits()
    del cfg.depth.rtol
    cfg.depth.rtol = None
    given = ["--config.depth.rtol=None", "--config.depth.rtol", "1e-3", "--config.seed", "7"]
    parsed, _ = parse(*given, "--config.optimizer.clip_norm", "None", cfg=cfg)
    assert (parsed.depth.rtol, parsed.seed, parsed.optimizer.clip_norm) == (1e-3, 7, None)


@pytest.mark.parametrize(
    ("text", "value"), [("8,16", (8, 16)), ("(8, 16)", (8, 16)), ("[8,16]", (8, 16)), ("16", 16)]
)
@pytest.mark.parametrize("start", [8, (4, 4)])
def test_pairs(start, text, value):
    cfg = common.get_digits(layers=1)
    del cfg.model.image_size
    cfg.model.image_size = start
    parsed, _ = parse(f"--config.model.image_size={text}", cfg=cfg)
    config = from_config_dict(parsed)
    assert config.model.image_size == value


def test_none_in_a_study():
    study = ["--study=configs/studies/digits.py", "--study.config.optimizer.clip_norm=None"]
    study += ["--study.folds=None", "--study.matched=None", "--study.seeds=1,2"]
    cfg = parse_with_config(["", *study], flags.FlagValues(), name="study")
    assert (cfg.config.optimizer.clip_norm, cfg.folds, cfg.matched) == (None, None, None)
    assert cfg.seeds == (1, 2)
    for wrong in ("config.seed", "matched.row"):
        with pytest.raises(BadInput, match=f"study.{wrong} .*None"):
            parse_with_config(
                ["", study[0], f"--study.{wrong}=None"], flags.FlagValues(), name="study"
            )


@pytest.mark.parametrize("start", [dict(rtol=0.1, max_steps=9, solver="tsit5"), dict(steps=8)])
def test_no_tolerance_in_evaluation_is_fixed_steps(tiny, start):
    tiny.depth.update(steps=None)
    tiny.depth.update(start)
    cfg, _ = parse("--config.depth.rtol=None", cfg=tiny)
    config = from_config_dict(for_evaluation(cfg.to_dict(), {"depth.rtol"}))
    assert config.model.depth.rtol is None and config.model.depth.max_steps is None
    assert config.model.depth.steps == start.get("steps")


def test_the_programs_read_none(monkeypatch, tmp_path):
    with pytest.raises(BadInput, match="--topology is missing"):
        start(monkeypatch, aot, DIGITS, "--config.optimizer.clip_norm=None")
    with pytest.raises(BadInput, match="config.seed takes int; None was given"):
        start(monkeypatch, aot, DIGITS, "--config.seed=None")
    with pytest.raises(BadInput, match="config.train_steps takes int; None was given"):
        start(monkeypatch, __main__, DIGITS, "--config.train_steps=None", f"--workdir={tmp_path}/r")
    assert not (tmp_path / "r").exists()


def test_what_a_terminal_cannot_show_is_replaced(monkeypatch):
    """Text, tables, names of files that are not UTF-8: no program dies of them."""
    written = {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, stream in written.items():
        monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, "ascii"))

    def main(argv):
        print("50 \u00b1 1")
        console = Console(width=40)
        table = Table("\u00e9t\u00e9")
        table.add_row("run-\udcff")
        console.print(table)
        with RunProgress(0, 3) as progress:
            progress.note("saved in \u00e9t\u00e9")
        raise BadInput("\u00e9t\u00e9 is no folder")

    assert run(main, [], flags.FlagValues(), None) == 2
    sys.stdout.flush(), sys.stderr.flush()
    for text in (b"50 ? 1\n", b"?t?", b"run-?", b"saved in ?t?\n"):
        assert text in written["stdout"].getvalue()
    assert written["stderr"].getvalue() == b"error: ?t? is no folder\n"


def test_flags_before_parsing():
    assert flag_value(["p", "--a=1", "--workdir=x"], "workdir") == "x"
    assert flag_value(["p", "--workdir", "x"], "workdir") == "x"
    assert flag_value(["p", "--workdirs=x"], "workdir") is None
