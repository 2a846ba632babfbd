"""Flags: overrides reach the config, and what does not fit is refused in words."""

import io
import sys

import pytest
from absl import flags
from rich.console import Console
from rich.table import Table

from train.command_line import flag_value, parse_with_config, run
from train.errors import BadInput
from train.progress import RunProgress

DIGITS = "--config=configs/digits.py"


def parse(*args, cfg=None):
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
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
            "depth.rtol=tiny: could not convert string to float",
        ),
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
