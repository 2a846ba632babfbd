"""Modules of a user's own, imported because the user names them, and never because a workdir does.

A workdir may come from anywhere: the names that its config.json holds are compared, and reported.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import pathlib
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any

from train.errors import BadInput, warn
from train.files import absolute

# By name, as `normal` writes it.
_IMPORTED: dict[str, ModuleType] = {}


def normal(name: str) -> str:
    """Returns a file's path from the root on, so that it holds in any folder; a module's name."""
    return absolute(name) if name.endswith(".py") else name


def are_names(value: Any) -> bool:
    """Returns whether a value is a sequence of names of modules."""
    if not isinstance(value, tuple | list):
        return False
    return all(isinstance(name, str) and name.strip() for name in value)


def import_modules(names: Any) -> tuple[str, ...]:
    """Imports files and modules, each once, and returns their names as a config holds them.

    Args:
      names: files FILE.py, or modules that Python finds. What is no sequence of names is left to
        the check of the config.

    Raises:
      BadInput: one cannot be imported; says the file, the line and the error.
    """
    if not are_names(names):
        return ()

    normals = tuple(dict.fromkeys(map(normal, names)))
    for name in normals:
        if name not in _IMPORTED:
            _IMPORTED[name] = _import_file(name) if name.endswith(".py") else _import_name(name)
    return normals


def missing(names: Iterable[str]) -> list[str]:
    """Returns those names of which no module has been imported.

    Of a file its own name counts, not its folder: a run and its modules may have been moved.
    """
    imported = {_last(name) for name in _IMPORTED}
    return [name for name in names if _last(name) not in imported]


def warn_of_missing(place: Any, names: Sequence[str]) -> None:
    """Warns of modules that a workdir or a config names and that are not imported here."""
    if lacking := missing(names):
        warn(f"{place} names modules that are not imported here: {advice(lacking)}")


def advice(lacking: Sequence[str]) -> str:
    """Returns what to do about modules that are missing."""
    listed = ",".join(lacking)
    return f"if you trust them, give --modules={listed}, or where they lie on this machine"


def _last(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def _import_file(path: str) -> ModuleType:
    if not pathlib.Path(path).is_file():
        raise BadInput(f"config.modules: {path} is not a file: name a Python file, or a module")

    # A name of its own: a file `random.py` must not stand for the standard library's.
    name = f"{pathlib.Path(path).stem}_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look for it

    try:
        with _reported(path):
            spec.loader.exec_module(module)
    except BadInput:
        del sys.modules[name]
        raise
    return module


def _import_name(name: str) -> ModuleType:
    with _reported(name):
        return importlib.import_module(name)


@contextlib.contextmanager
def _reported(name: str) -> Iterator[None]:
    """Reports as bad input what a module of the user's raises."""
    try:
        yield
    except (Exception, SystemExit) as error:
        # The innermost line that is the user's; of one that cannot be parsed there is none.
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename == name]
        machinery = (__file__, importlib.__file__)
        others = [f for f in frames if f.filename not in machinery and "<frozen" not in f.filename]
        place = ""
        if isinstance(error, SyntaxError):
            place = f"line {error.lineno} of {error.filename}: "
        elif own or others:
            frame = (own or others)[-1]
            place = f"line {frame.lineno} of {frame.filename}: "

        raise BadInput(
            f"config.modules: {name} cannot be imported: {place}{type(error).__name__}: "
            f"{' '.join(str(error).split())}"
        ) from error
