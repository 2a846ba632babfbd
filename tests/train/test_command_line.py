"""Flags: overrides reach the config, and what does not fit is refused in words."""

import io
import sys

import pytest
from absl import flags
from rich.console import Console
from rich.table import Table

from tests.helpers.programs import run, start
from tests.helpers.tiny import make_tiny, make_tiny_language
from train import __main__, command_line
from train.aot import __main__ as aot
from train.command_line import (
    define_file,
    define_path,
    flag_value,
    load_file,
    parse_changes,
    parse_config,
    parse_run,
)
from train.config.border import from_config_dict, settings_for
from train.config.names import RENAMED
from train.config.study import read_study, study_settings
from train.errors import BadInput
from train.logs.progress import RunProgress

DIGITS = "--config=configs/digits.py"


def make_flags():
    values = flags.FlagValues()
    define_path("workdir", "", values)
    return values


def parse(*args):
    values = make_flags()
    return parse_config(["program", *args], values), values


def parse_stored(*args, make=make_tiny):
    """What a program that reads a run makes of its arguments."""
    config = from_config_dict(make())
    return parse_run(["program", "--workdir=x", *args], make_flags(), lambda _: config)[1]


def test_overrides_reach_the_config():
    args = (DIGITS, "--config.depth.rtol=1e-3", "--config.depth.solver=tsit5", "--workdir=x")
    config, values = parse(*args, "--config.seed=7")
    depth = config.model.depth
    assert (depth.rtol, depth.solver, config.seed, values.workdir) == (1e-3, "tsit5", 7, "x")


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("model.image_size=8", "image_size", 8),
        ("model.image_size=8,16", "image_size", (8, 16)),
        ("model.image_size=(8, 16)", "image_size", (8, 16)),
        ("model.fused", "fused", True),
        ("model.fused=true", "fused", True),
        ("model.width=128", "width", 128),
        ("model.terms=attention,mlp,conv", "terms", ("attention", "mlp", "conv")),
    ],
)
def test_values_of_every_type(text, key, value):
    config, _ = parse(DIGITS, f"--config.{text}")
    assert getattr(config.model, key) == value


def test_keys_that_no_config_sets_can_be_set():
    args = ("--config.optimizer.clip_norm=None", "--config.checkpoint.best=None")
    config, _ = parse(DIGITS, *args, "--config.optimizer.b1", "0.8", "--config.data.data_dir=/d")
    assert config.optimizer.clip_norm is None and config.checkpoint.best is None
    assert (config.optimizer.b1, config.data.data_dir) == (0.8, "/d")
    assert parse(DIGITS, "--noconfig.model.fused")[0].model.fused is False


OPTIONAL = {  # every key that may be without a value -> another value of it
    "optimizer.clip_norm": 2.0,
    "optimizer.ema_decay": 0.5,
    "optimizer.decay_steps": 7,
    "guard.sigmas": 3.0,
    "depth.rtol": 0.1,
    "depth.atol": 0.1,
    "depth.steps": 3,
    "depth.max_steps": 9,
    "depth.policy": "dots_saveable",
    "data.data_dir": "/x",
    "data.files": "/y",
    "data.fold": 3,
    "checkpoint.best": "val/accuracy",
    "model.preset": "deit_ti",
    "model.kv_heads": 2,
    "model.head_size": 8,
    "model.layer_scale": 0.1,
    "depth.coefficients": 3,
    "depth.reversible": 0.9,
    "init.path": "/z",
    "lora.rank": 4,
    "lora.alpha": 8.0,
    "optimizer.layer_decay": 0.5,
}


def test_none_is_none():
    """Whatever the key's value was."""
    settings = settings_for("images")
    assert {k for k, setting in settings.items() if "None" in str(setting.kind)} == OPTIONAL.keys()
    for key, value in OPTIONAL.items():
        for before in ([], [f"--config.{key}={value}"]):
            args = ["", *before, f"--config.{key}=None"]
            assert parse_changes(args, flags.FlagValues(), "config", settings) == {key: None}


def test_none_in_a_study():
    study = ["", "--study=configs/studies/digits.py", "--study.config.optimizer.clip_norm=None"]
    study += ["--study.folds=None", "--study.matched=None", "--study.tune=None"]
    study += ["--study.margin=None", "--study.seeds=1,2"]
    file, values = load_file(study, "study"), flags.FlagValues()
    define_file("study", values)
    changes = parse_changes(study, values, "study", study_settings(file))
    own = read_study(file, changes)
    assert (changes["config.optimizer.clip_norm"], own.folds, own.matched) == (None, None, None)
    assert (own.tune, own.margin, own.seeds) == (None, None, (1, 2))
    for wrong in ("config.seed", "matched.row"):
        with pytest.raises(BadInput, match=f"study.{wrong} takes .*None"):
            parse_changes(
                ["", f"--study.{wrong}=None"], flags.FlagValues(), "study", study_settings(file)
            )


def test_the_programs_read_none(monkeypatch, tmp_path):
    with pytest.raises(BadInput, match="--topology is missing"):
        start(monkeypatch, aot, DIGITS, "--config.optimizer.clip_norm=None")
    with pytest.raises(BadInput, match="config.seed takes int; None was given"):
        start(monkeypatch, aot, DIGITS, "--config.seed=None")
    with pytest.raises(BadInput, match="config.train_steps takes int; None was given"):
        start(monkeypatch, __main__, DIGITS, "--config.train_steps=None", f"--workdir={tmp_path}/r")
    assert not (tmp_path / "r").exists()


def test_a_preset_by_flag():
    config, _ = parse("--config=configs/imagenet.py", "--config.model.preset=vit_b")
    assert config.model.width == 768 and config.model.drop_path == 0.1


def test_a_runs_own_config_can_be_overridden():
    config = parse_stored("--config.depth.solver=tsit5", "--config.depth.steps=3")
    depth = config.model.depth
    assert (depth.solver, depth.steps, config.train_steps) == ("tsit5", 3, 6)
    assert parse_stored("--config.depth.solver=rk4", make=make_tiny_language).task == "language"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([DIGITS, "--config.depth.solvr=rk4"], "unknown config key .*Did you mean 'depth.solver'"),
        (
            [DIGITS, "--config.depth.rtol=tiny"],
            "config.depth.rtol takes float or None; tiny was given",
        ),
        ([DIGITS, "--config.train_steps=1.5"], "config.train_steps takes int; 1.5 was given"),
        ([DIGITS, "--config.train_steps=None"], "config.train_steps takes int; None was given"),
        ([DIGITS, "--config.model.image_size=8,8,1"], "image_size is a side or a pair of sides"),
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
        ([DIGITS, "--config.optimizer.b1=2"], r"config.optimizer.b1 is in \[0, 1\); 2.0 was given"),
        (
            [DIGITS, "--wrkdir=x"],
            "unknown flag '--wrkdir'; accepted: --workdir, --config, .*'--workdir'",
        ),
        ([DIGITS, "digits"], "unexpected argument 'digits'"),
        ([DIGITS, "--lr=3"], r"unknown flag '--lr'.*'--config.optimizer.learning_rate'\?$"),
        ([DIGITS, "--solver=rk4"], r"unknown flag '--solver'.*'--config.depth.solver'\?$"),
        ([DIGITS, "--epochs=3"], r"'--config.train_steps'\? \(train_steps = epochs \* "),
        (
            [DIGITS, "--zzz=3"],
            r"unknown flag '--zzz'; accepted: --workdir, --config, --modules, --help\.$",
        ),
        (["--config=configs/digit.py"], "digit.py is not a file: did you mean configs/digits.py"),
        (["--config=configs/studies/digit.py"], "did you mean configs/studies/digits.py"),
        (["--config=digits"], "digits is not a file: did you mean configs/digits.py"),
        (["--config=zzz"], "zzz is not a file: give one such as configs/digits.py"),
        ([], "--config is missing"),
        (["--config=README.md"], "README.md does not give a config"),
        (["--config=configs/digits.py:size=cpu"], "does not give a config: TypeError"),
        (["--config=configs/cifar.py:size=big"], "unknown value in 'size=big'; accepted: accel"),
    ],
)
def test_refusals(args, message):
    with pytest.raises(BadInput, match=message):
        parse(*args)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_old_names_are_refused_with_the_new_one(old, new):
    message = f"config.{old} is now config.{new}" if new else f"config.{old} is no key any more"
    for action in (lambda flag: parse(DIGITS, flag), parse_stored):
        with pytest.raises(BadInput, match=message):
            action(f"--config.{old}=1")


def test_a_program_that_reads_a_run_takes_no_file():
    with pytest.raises(BadInput, match="unknown flag '--config'"):
        parse_stored(DIGITS)


@pytest.mark.parametrize(
    ("module", "args", "lines"),
    [
        ("train", (), ("  --config.data.packing=str", "  --config.data.skip_corrupt=bool")),
        ("train", (DIGITS,), ("  --config.depth.rtol=float or None", "Here: 0.003.")),
        (
            "train.generate",
            (),
            (
                "  --workdir",
                "repeat the flag for several texts.\n  --max_new_tokens",
                "  --config.model.tied=bool",
            ),
        ),
        (
            "train.study",
            ("--study=configs/studies/sst2.py",),
            (
                "  --study.seeds=numbers with commas",
                "  --study.config.data.token_dropout=float",
                "Here: 0.3.",
            ),
        ),
    ],
)
def test_help_lists_the_keys(module, args, lines):
    done = run(module, *args, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for line in lines:
        assert line in done.stdout


def test_flags_before_parsing():
    assert flag_value(["p", "--a=1", "--workdir=x"], "workdir") == "x"
    assert flag_value(["p", "--workdir", "x"], "workdir") == "x"
    assert flag_value(["p", "--workdirs=x"], "workdir") is None


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

    assert command_line.run(main, [], flags.FlagValues(), None) == 2
    sys.stdout.flush(), sys.stderr.flush()
    for text in (b"50 ? 1\n", b"?t?", b"run-?", b"saved in ?t?\n"):
        assert text in written["stdout"].getvalue()
    assert written["stderr"].getvalue() == b"error: ?t? is no folder\n"
