"""The folder of a run: owner, lock and layout.

A workdir holds config.json, inputs.json, checkpoints/<step>/ and, for a run on text,
tokenizer.json.
"""

import contextlib
import datetime
import fcntl
import os
import re
import socket
from collections.abc import Iterator
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from train.checkpoint.workdir_checks import (
    check_name,
    check_same_inputs,
    check_same_run,
    in_use,
    no_config,
    reading_config,
    reading_inputs,
    reading_tokenizer,
    reported,
)
from train.config.border import flatten, to_dict
from train.config.data import ImageDataConfig
from train.config.run import RunConfig, base_task
from train.config.stored import from_json, to_json
from train.data import inputs as data_inputs
from train.data.inputs import Inputs, describe_inputs
from train.data.split import Split
from train.data.text import tokenizer as tokenizers
from train.data.text.tokenizer import Tokenizer
from train.devices.processes import is_primary
from train.errors import warn
from train.files import as_path, is_local, write_atomic

INPUTS = "inputs.json"

# Ends the name of a checkpoint that its run was rolled back from: orbax sees no step in it.
RETIRED = ".aside"

_RETIRED_NAME = re.compile(rf"(\d+){re.escape(RETIRED)}")
_UNFINISHED_NAME = re.compile(r"(\d+)\.orbax-checkpoint-tmp.*")


def check_workdir(workdir: str | epath.Path, config: RunConfig) -> epath.Path:
    """Returns the workdir's path after a check that it holds this run or none; writes nothing.

    A workdir without a checkpoint holds no run yet, whatever config was recorded.

    Raises:
      BadInput: the workdir cannot be read, its name cannot be that of a workdir, or it holds a run
        with another config or more steps.
    """
    with reported(workdir):
        path = as_path(workdir)
        check_name(path)

        if _holds_run(path):
            saved_step = max(saved_steps(path), default=0)
            check_same_run(path, read_config(path), config, saved_step)

        return path


@contextlib.contextmanager
def locked(path: epath.Path) -> Iterator[None]:
    """Keeps every other trainer out of a local workdir, which is made if it is missing.

    Of several processes the first holds the lock. A gs:// address has no locks.

    Raises:
      BadInput: another trainer is at work in it, or it cannot be written.
    """
    if not is_local(path) or not is_primary():
        yield
        return

    with reported(path):
        path.mkdir(parents=True, exist_ok=True)
        file = open(path / "lock", "a+", encoding="utf-8")  # noqa: SIM115, closed below: only opening is reported

    # The lock is the kernel's and ends with this process, however it ends; the file stays.
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise in_use(path, file.read()) from None

        # Some network file systems have no locks.
        except OSError as error:
            warn(f"{path} cannot be locked ({error.strerror}): start no second trainer there")

        # The text is for people: the lock holds without it, as on a disk that is full.
        with contextlib.suppress(OSError):
            file.truncate(0)
            now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
            file.write(f"process {os.getpid()} on {socket.gethostname()}, since {now}\n")
            file.flush()

        yield


def record_run(path: epath.Path, config: RunConfig, data: Split | None) -> None:
    """Makes the workdir if it is missing, and records the run in it.

    Args:
      path: of the workdir.
      data: one of the run's splits, whose tokeniser, if it has one, is recorded too, and what a
        model's inputs are made of; None to record the config alone.

    Raises:
      BadInput: the workdir cannot be written.
    """
    tokenizer: Tokenizer | None = getattr(data, "tokenizer", None)

    with reported(path):
        path.mkdir(parents=True, exist_ok=True)
        _record(path / "config.json", to_json(config))

        if tokenizer is not None:
            _record(path / "tokenizer.json", tokenizer.to_json())

        # Those that are there were compared: a mean may differ in its last digit between machines.
        if data is not None and not (_holds_run(path) and (path / INPUTS).exists()):
            text = data_inputs.to_json(base_task(config.task), describe_inputs(config, data))
            _record(path / INPUTS, text)


def check_inputs(path: epath.Path, config: RunConfig, data: Split) -> None:
    """Refuses to resume a run whose inputs were made in another way, or of other files.

    Args:
      path: of the workdir.
      data: one of the run's splits, as it is now.

    Raises:
      BadInput: what is in the workdir's inputs.json is not what the data say now.
    """
    if _holds_run(path) and (stored := read_inputs(path)) is not None:
        check_same_inputs(path, stored, describe_inputs(config, data))


def _record(path: epath.Path, text: str) -> None:
    if not path.exists() or path.read_bytes() != text.encode():
        write_atomic(path, text)


def is_workdir(path: str) -> bool:
    """Returns whether a path is a workdir."""
    # A workdir and a pretrained model's folder both have a config.json.
    return any((as_path(path) / name).exists() for name in ("checkpoints", INPUTS))


def checkpoint_folder(workdir: str | epath.Path) -> epath.Path:
    """Returns the folder of a workdir's checkpoints, as an absolute path."""
    # orbax refuses relative paths.
    return as_path(workdir).resolve() / "checkpoints"


def saved_steps(workdir: str | epath.Path) -> list[int]:
    """Returns the steps of a workdir's finished checkpoints, sound or not, in ascending order."""
    folder = checkpoint_folder(workdir)
    return sorted(
        int(name)
        for name in _names(folder)
        if name.isdigit() and ocp.utils.is_checkpoint_finalized(folder / name)
    )


def unfinished_saves(workdir: str | epath.Path) -> dict[str, int]:
    """Returns {name in checkpoints/: step} of saves that were cut off before their end."""
    names = _names(checkpoint_folder(workdir))
    finished = {str(step) for step in saved_steps(workdir)}

    # A local file system renames a checkpoint when it is finished; gs:// has no renames, and a
    # file in the folder says whether it is.
    renamed = {name: int(match[1]) for name in names if (match := _UNFINISHED_NAME.fullmatch(name))}
    return renamed | {name: int(name) for name in names if name.isdigit() and name not in finished}


def retired_saves(workdir: str | epath.Path) -> dict[str, int]:
    """Returns {name in checkpoints/: step} of checkpoints that their run was rolled back from."""
    names = _names(checkpoint_folder(workdir))
    return {name: int(match[1]) for name in names if (match := _RETIRED_NAME.fullmatch(name))}


def _names(folder: epath.Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()] if folder.exists() else []


def delete_replaced(workdir: str | epath.Path, step: int) -> None:
    """Deletes what the checkpoint of `step` replaces: unfinished and retired saves up to it."""
    # What cannot be deleted is harmless, and is tried again after the next save.
    with contextlib.suppress(OSError):
        for name, saved in (unfinished_saves(workdir) | retired_saves(workdir)).items():
            if saved <= step:
                (checkpoint_folder(workdir) / name).rmtree()


def has_vanished(path: epath.Path) -> bool:
    """Returns whether a local workdir, in which the run was recorded, no longer exists."""
    return is_local(path) and not (path / "config.json").exists()


def read_config(workdir: str | epath.Path) -> RunConfig:
    """Returns the config of the run in a workdir.

    Raises:
      BadInput: the workdir holds no run, or its config cannot be read.
    """
    path = as_path(workdir) / "config.json"
    with reported(workdir):
        content = path.read_bytes() if path.exists() else None

    if content is None:
        raise no_config(workdir, _holds_run(as_path(workdir)))

    with reading_config(path, content):
        return from_json(content.decode())


def recorded_values(workdir: str | epath.Path | None) -> dict[str, Any] | None:
    """Returns the config of the run in a workdir, by key; None as long as that has no checkpoint.

    Raises:
      BadInput: the workdir or its config cannot be read.
    """
    if workdir is None:
        return None

    path = as_path(workdir)
    with reported(workdir):
        return flatten(to_dict(read_config(path))) if _holds_run(path) else None


def read_inputs(workdir: str | epath.Path) -> Inputs | None:
    """Returns a run's inputs; None where it was begun by a trainer that did not record them.

    Raises:
      BadInput: they cannot be read.
    """
    path = as_path(workdir) / INPUTS
    with reported(workdir):
        content = path.read_text() if path.exists() else None

    if content is None:
        return None
    with reading_inputs(path):
        return data_inputs.from_json(content)


def read_tokenizer(workdir: str | epath.Path) -> Tokenizer | None:
    """Returns the tokeniser of the run in a workdir; None if it has none, or no checkpoint yet.

    Raises:
      BadInput: the run is one on text, and its tokeniser is missing or cannot be read.
    """
    # Before the first checkpoint another config may still replace the one that was recorded, and
    # its tokeniser with it.
    if not _holds_run(as_path(workdir)) or isinstance(read_config(workdir).data, ImageDataConfig):
        return None

    path = as_path(workdir) / "tokenizer.json"
    with reading_tokenizer(path):
        return tokenizers.from_json(path.read_text())


def _holds_run(path: epath.Path) -> bool:
    # Retired ones count: a run that was rolled back to its start is still the owner.
    return bool(saved_steps(path) or retired_saves(path))
