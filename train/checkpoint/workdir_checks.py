"""Whether a folder can be a run's workdir, and whether its files can be read."""

import contextlib
import dataclasses
import fnmatch
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from train.config.modules import advice, are_names, missing
from train.config.run import RunConfig
from train.config.stored import CHANGEABLE_ON_RESUME, resume_conflicts
from train.data.inputs import ImageInputs, Inputs, LanguageInputs
from train.errors import BadInput
from train.files import is_local


@contextlib.contextmanager
def reported(workdir: str | epath.Path) -> Iterator[None]:
    """Reports as bad input what keeps the workdir from being used."""
    try:
        yield
    except FileExistsError as error:
        raise BadInput(f"workdir {workdir} is a file: give a folder as --workdir") from error
    except OSError as error:
        raise BadInput(
            f"workdir {workdir} cannot be read and written ({error.strerror or error}): take "
            "another --workdir"
        ) from error
    except ImportError as error:
        raise BadInput(
            f"workdir {workdir} needs a package that is not installed ({error}): for gs:// "
            "addresses pip install 'etils[epath-gcs]'"
        ) from error


def check_name(path: epath.Path) -> None:
    """Refuses a folder in which orbax would save checkpoints and not find them again."""
    # orbax finds the files of each process by a pattern that the whole path is part of, and there
    # '[1]' stands for '1'.
    for part in path.resolve().parts if is_local(path) else ():
        if not fnmatch.fnmatchcase(part, part):
            raise BadInput(
                f"workdir {path}: checkpoints cannot be read back from a folder with brackets in "
                f"its name, as {part!r}: take a --workdir without"
            )


def check_same_run(path: epath.Path, saved: RunConfig, config: RunConfig, saved_step: int) -> None:
    """Refuses a config that the run in the workdir cannot be resumed with."""
    conflicts = resume_conflicts(saved, config)
    if conflicts:
        raise BadInput(
            f"{path} holds a run with another config:\n  " + "\n  ".join(conflicts) + "\n"
            f"Take another --workdir, or delete this one. On resume only "
            f"{', '.join(CHANGEABLE_ON_RESUME)} may differ."
        )
    if config.train_steps < saved_step:
        raise BadInput(
            f"{path} holds a run of {saved_step} steps, config.train_steps={config.train_steps} "
            "was given: give as many or more, or take another --workdir"
        )


def in_use(path: epath.Path, owner: str) -> BadInput:
    """Returns the error for a workdir whose lock another trainer holds, as its lock file says."""
    return BadInput(
        f"{path} is in use: {owner.strip() or 'another process'} trains there; wait "
        "for it, stop it, or take another --workdir"
    )


def no_config(workdir: str | epath.Path, holds_run: bool) -> BadInput:
    """Returns the error for a workdir without a config.json."""
    if holds_run:
        return BadInput(
            f"{workdir} holds checkpoints and no config.json: put it back; a checkpoint's "
            "record/record.json holds it, too"
        )
    return BadInput(f"{workdir} holds no run (no config.json): give a workdir that train made")


@contextlib.contextmanager
def reading_config(path: epath.Path, content: bytes) -> Iterator[None]:
    """Reports as bad input a config.json that is none, or has names of modules that are missing."""
    try:
        yield
    except BadInput as error:
        if lacking := _missing_modules(content):
            raise BadInput(
                f"{path} is a config of modules that are not imported here ({error}): "
                f"{advice(lacking)}"
            ) from error
        raise not_a_config(path, error) from error
    except (ValueError, AttributeError, TypeError) as error:
        raise not_a_config(path, error) from error


def not_a_config(path: epath.Path, error: Exception) -> BadInput:
    """Returns the error for a config.json that is none."""
    return BadInput(
        f"{path} is not the config of a run ({error}): put it back; a checkpoint's "
        "record/record.json holds it, too"
    )


def _missing_modules(content: bytes) -> list[str]:
    names = json.loads(content).get("modules")
    return missing(names) if are_names(names) else []


@contextlib.contextmanager
def reading_tokenizer(path: epath.Path) -> Iterator[None]:
    """Reports as bad input a tokenizer.json that is missing, or none."""
    if not path.exists():
        raise BadInput(f"{path} is missing, without which no text can be read: restore it")

    try:
        yield
    except ValueError as error:
        raise BadInput(f"{path} is not the tokeniser of a run ({error}): restore it") from error


@contextlib.contextmanager
def reading_inputs(path: epath.Path) -> Iterator[None]:
    """Reports as bad input an inputs.json that is none."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{path} does not say what the run's inputs are ({error}): put it back, or delete it "
            "and give the train command again, which writes it from the data"
        ) from error


def check_same_inputs(path: epath.Path, stored: Inputs, now: Inputs) -> None:
    """Refuses inputs that are not those of the run in a workdir.

    Args:
      path: of the workdir.
      stored: its inputs.json.
      now: what the data say.
    """
    if type(stored) is type(now):
        _check_same_files(path, stored, now)

    # Runs on texts were begun before these had an origin, and are not refused for lacking it.
    was, is_now = dataclasses.asdict(stored), dataclasses.asdict(now)
    if was["origin"] is None and not isinstance(stored, ImageInputs):
        del is_now["origin"]
    for name in is_now:
        if not _is_same(was.get(name), is_now.get(name)):
            raise BadInput(
                f"{path}: the data are not those that the run was trained on: {name} was "
                f"{was.get(name)} and is {is_now.get(name)}; give it the data it had, or take "
                "another --workdir"
            )


def _check_same_files(path: epath.Path, stored: Inputs, current: Inputs) -> None:
    was, now = stored.origin, current.origin
    if was is None or now is None or was["sha256"] == now["sha256"]:
        return

    if isinstance(stored, LanguageInputs):
        read, what = "text of config.data.files", _changed_text(was, now)
    else:
        noun = "images" if isinstance(stored, ImageInputs) else "texts"
        read, what = f"folder of {noun}", _changed_files(was["files"], now["files"], noun)
    raise BadInput(
        f"{path}: the {read} has changed since the run began: {what}; put it back as it was, or "
        "take another --workdir"
    )


def _changed_text(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if was["characters"] == now["characters"]:
        return "as many characters as before, and not the same, or in another order"
    return f"it had {was['characters']:,} characters and has {now['characters']:,}"


def _changed_files(was: Mapping[str, int], now: Mapping[str, int], noun: str) -> str:
    changed = [
        f"{name!r} had {was.get(name, 0)} {noun} and has {now.get(name, 0)}"
        for name in {**was, **now}
        if was.get(name) != now.get(name)
    ]
    return ", ".join(changed) or "a file has another name, content or split"


def _is_same(was: Any, now: Any) -> bool:
    # The last digits of a mean depend on the machine.
    if isinstance(was, tuple) and was and isinstance(was[0], float) and isinstance(now, tuple):
        return len(was) == len(now) and np.allclose(was, now, rtol=1e-6, atol=0)
    return was == now
