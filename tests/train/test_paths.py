"""Paths as a person gives them: `~`, relative ones, addresses; in flags, programs and configs."""

import os
import pathlib

import pytest
from absl import flags
from etils import epath

from tests.helpers.checkout import ROOT
from tests.helpers.programs import run
from tests.helpers.tiny import make_tiny_language
from train.checkpoint.restore import verified_config
from train.checkpoint.workdir import check_workdir, read_config
from train.command_line import define_path, parse_run
from train.config.border import checked, from_config_dict, settings_for, to_dict
from train.config.run import TASKS
from train.config.setting import kinds_of
from train.config.stored import from_json, from_stored, resume_conflicts, to_json
from train.data.text.documents import load_documents
from train.errors import BadInput
from train.files import absolute, as_path, expand
from train.logs.metrics import read_metrics
from train.loop import train

BUCKET = "gs://bucket/~/x"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder of the test's own, which is not the current one."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "home"


def test_what_paths_stand_for(home):
    here = os.getcwd()
    assert [expand(path) for path in ("~/x", "~", "x", "x/~", "/x", BUCKET, "")] == [
        *(f"{home}/x", str(home), "x", "x/~", "/x", BUCKET, "")
    ]
    assert [absolute(path) for path in ("~/x", "x/../y", "/x/", BUCKET)] == [
        *(f"{home}/x", f"{here}/y", "/x", BUCKET)
    ]
    assert as_path("~/x") == as_path(pathlib.Path("~/x")) == epath.Path(home / "x")
    with pytest.raises(BadInput, match="~no-one-of-this-name/x: ~no-one.* is nobody's home: give"):
        expand("~no-one-of-this-name/x")


def test_flags(home):
    values = flags.FlagValues()
    define_path("workdir", "", values)
    values(["program", "--workdir=~/x"])
    assert values.workdir == f"{home}/x"


def test_config_keys(home):
    cfg = make_tiny_language()
    cfg.data.update(files="texts/[a]/*.txt", data_dir="~/data", tokenizer="~/tokenizer.json")
    config = from_config_dict(cfg)
    assert config.data.files == f"{home.parent}/elsewhere/texts/[a]/*.txt"
    assert (config.data.data_dir, config.data.tokenizer) == (
        f"{home}/data",
        f"{home}/tokenizer.json",
    )
    cfg.data.update(files=None, data_dir=BUCKET, tokenizer="bpe")
    data = from_config_dict(cfg).data
    assert (data.files, data.data_dir, data.tokenizer) == (None, BUCKET, "bpe")
    cfg.data.data_dir = "~no-one-of-this-name/x"
    with pytest.raises(BadInput, match="config.data.data_dir=~no-one-of-this-name/x: ~no-one"):
        from_config_dict(cfg)


def test_every_key_that_is_a_path_is_expanded():
    """Of all keys of text whose name or meaning is a place; a new one belongs to one of both."""
    words = {"task", "data.name", "data.text_key", "data.label_key", "data.packing"}
    words |= {"parallel.mode", "checkpoint.best", "depth.solver", "depth.adjoint", "depth.policy"}
    words |= {f"model.{key}" for key in ("dtype", "pool", "positions", "time", "attention")}
    words |= {f"model.{key}" for key in ("preset", "activation", "distillation", "norm")}
    words |= {"model.rotary_scaling", "depth.basis"}
    words |= {"optimizer.name", "optimizer.schedule"}
    for task in TASKS:
        settings = settings_for(task)
        texts = {key for key, setting in settings.items() if str in kinds_of(setting.kind)}
        for key in texts - words:
            value = checked(key, "~/x", settings[key])
            assert value == os.path.expanduser("~/x"), key


def test_the_same_place_is_the_same_config_in_any_folder(home, monkeypatch):
    stored = from_config_dict(make_tiny_language(), {"data.files": "../home/texts"})
    stored = from_json(to_json(stored))
    monkeypatch.chdir(home)
    for files in ("texts", "~/texts", str(home / "texts"), "../home/texts/"):
        other = from_config_dict(make_tiny_language(), {"data.files": files})
        assert resume_conflicts(stored, other) == []
    other = from_config_dict(make_tiny_language(), {"data.files": "../texts"})
    assert resume_conflicts(stored, other) == [
        f"data.files: '{home}/texts' in the workdir, '{home.parent}/texts' given"
    ]


@pytest.mark.slow
def test_a_run_is_resumed_from_another_folder(home, monkeypatch):
    """Every way of naming the same files is the same config, wherever it is given."""
    (home / "texts").mkdir()
    (home / "texts" / "a.txt").write_text((ROOT / "LICENSE").read_text())
    cfg = make_tiny_language()
    cfg.train_steps, cfg.optimizer.warmup_steps = 1, 0
    cfg.data.update(files="../home/texts", tokenizer="bytes")
    cfg.model.vocabulary = 257
    cfg.depth.update(layers=1, share=1, solver="euler")
    train(cfg, "~/run")
    assert not pathlib.Path("~").exists() and (home / "run" / "config.json").exists()
    assert read_config("~/run").data.files == str(home / "texts")
    monkeypatch.chdir(home)
    for files in ("texts", "~/texts", str(home / "texts"), "../home/texts/"):
        cfg.data.files = files
        assert check_workdir("run", from_config_dict(cfg)) == epath.Path("run")
    assert load_documents(read_config("run").data)["train"]
    monkeypatch.chdir("/")
    assert read_metrics("~/run")[-1]["step"] == 1
    values = flags.FlagValues()
    define_path("workdir", "", values)
    workdir, config = parse_run(["", "--workdir=~/run"], values, verified_config)
    assert (workdir, config.data.files) == (str(home / "run"), str(home / "texts"))
    inspected = run("train.inspect", "~/run")
    assert inspected.returncode == 0 and f"{home}/run" in inspected.stdout
    cfg.data.files = "/other"
    with pytest.raises(BadInput, match="data.files: '.*home/texts' in the workdir, '/other' given"):
        check_workdir("~/run", from_config_dict(cfg))


@pytest.mark.parametrize("name", ["run[1]", "a [b]/run"])
def test_a_workdir_whose_checkpoints_would_not_be_found(tiny, tmp_path, name):
    config = from_config_dict(tiny)
    with pytest.raises(BadInput, match="cannot be read back from a folder with brackets"):
        check_workdir(tmp_path / name, config)
    assert not (tmp_path / name).exists()
    assert check_workdir(tmp_path / "[", config) == epath.Path(tmp_path / "[")


def test_programs_expand_their_files(home):
    (home / "digits.py").write_text((ROOT / "configs" / "digits.py").read_text())
    for arguments in (["--config=~/digits.py"], ["--config", "~/digits.py"]):
        done = run("train.inspect", "--params", *arguments)
        assert done.returncode == 0 and "35,594" in done.stdout, done.stderr
    missing = run("train.prepare", "mnist", "--archive=~/none", "--data_dir=~/data")
    assert missing.returncode == 2 and f"--archive={home}/none" in missing.stderr
    assert not pathlib.Path("~").exists()


def test_runs_of_older_versions_lack_keys(tiny):
    config = from_config_dict(tiny)
    given = to_dict(config)
    del given["data"]["test_fraction"]
    assert from_stored(given) == config
