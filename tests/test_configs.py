"""Every config builds, and every key of a config is read by the program."""

import ast
import dataclasses
import importlib
import pathlib
import typing

import pytest

from train.config import RunConfig, from_config_dict

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = sorted(
    path.stem for path in (ROOT / "configs").glob("[a-z]*.py") if path.stem != "common"
)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_builds(name):
    module = importlib.import_module(f"configs.{name}")
    assert "python -m train" in module.__doc__
    from_config_dict(module.get_config())


@pytest.mark.parametrize("name", ["common", *CONFIGS])
def test_configs_import_nothing_else(name):
    tree = ast.parse((ROOT / "configs" / f"{name}.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {
        a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names
    }
    assert modules <= {"ml_collections", "configs", "typing"}


def keys(cls, prefix=""):
    """Yields the dotted name of every field below a dataclass."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from keys(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def test_every_key_is_read():
    """Each field is read as an attribute somewhere behind its own definition."""
    read = set()
    for folder in ("odeformer", "train"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    read.add(node.attr)
    unread = [key for key in keys(RunConfig) if key.rpartition(".")[2] not in read]
    assert unread == []
