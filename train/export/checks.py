"""What is not exported: unknown forms, models that do not fit them, folders that hold files."""

import contextlib
import importlib
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from odeformer.errors import unknown
from train.errors import BadInput, first_line

# The most bytes of a serialised program.
_LARGEST = 1 << 31


def check_form(form: str | None, accepted: Collection[str]) -> str:
    """Returns the form to export to; refuses one that does not exist, or none."""
    if form is None:
        raise BadInput(f"--to is missing: give one of {', '.join(accepted)}")
    if form not in accepted:
        raise BadInput(f"--to: {unknown('form', form, accepted)}")
    return form


def check_options(form: str, given: Mapping[str, Any]) -> None:
    """Refuses flags of programs for another form."""
    if form == "stablehlo":
        return
    for name, value in given.items():
        if value is not None:
            raise BadInput(
                f"--{name} has no effect with --to={form}: leave it out; it is for --to=stablehlo"
            )


def check_place(place: str, accepted: Collection[str]) -> None:
    """Refuses weights at no known place."""
    if place not in accepted:
        raise BadInput(f"--weights: {unknown('place', place, accepted)}")


def check_out(out: str | None) -> pathlib.Path:
    """Returns the folder to write; refuses one that holds something, and an address."""
    if not out:
        raise BadInput("--out is missing: give a folder to write, which need not exist")
    if "://" in out:
        raise BadInput(f"--out={out} is no local folder: write one, and copy it there")

    path = pathlib.Path(out)
    if path.exists() and not path.is_dir():
        raise BadInput(f"--out={out} is a file: give a folder that is empty or does not exist")

    # Files of another export among those of this one would be read as one.
    held = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    if held:
        raise BadInput(
            f"--out={out} holds {held[0]}{' and more' * (len(held) > 1)}: give a folder that is "
            "empty or does not exist"
        )
    return path


@contextlib.contextmanager
def writing_folder(out: pathlib.Path) -> Iterator[None]:
    """Reports as bad input that a folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"--out={out} cannot be written ({error.strerror or error}): give another folder"
        ) from error


@contextlib.contextmanager
def writing_layout(form: str) -> Iterator[None]:
    """Reports as bad input a model that the layout has no place for, or a package that is missing.

    Args:
      form: the layout, a value of --to.
    """
    try:
        yield
    except ImportError as error:
        raise BadInput(f"--to={form}: {error}") from error
    except ValueError as error:
        raise BadInput(f"--to={form}: {error}; of a run: --to=safetensors") from error


def check_program_packages() -> None:
    """Refuses to make a program without the package that jax.export writes with."""
    try:
        importlib.import_module("flatbuffers")
    except ImportError as error:
        raise BadInput(
            "--to=stablehlo: jax.export needs the package flatbuffers, which is not installed: "
            "pip install 'odeformer-jax[export]'"
        ) from error


def check_platforms(platforms: Sequence[str], accepted: Collection[str]) -> None:
    """Refuses platforms that there are not, and none at all."""
    if not platforms:
        raise BadInput(f"--platforms is empty: give some of {', '.join(accepted)}")
    for platform in platforms:
        if platform not in accepted:
            raise BadInput(f"--platforms: {unknown('platform', platform, accepted)}")


def check_attention(attention: str) -> None:
    """Refuses a kernel of one platform's, whose calls jax.export does not write."""
    if attention == "cudnn":
        raise BadInput(
            "--to=stablehlo: config.model.attention='cudnn' calls a library of NVIDIA's, which no "
            "exported program can: give --config.model.attention=xla"
        )


def check_batch(batch: int | None) -> None:
    """Refuses a batch size that is no whole number from 1 on."""
    if batch is not None and batch < 1:
        raise BadInput(f"--batch is 1 or more; {batch} was given: leave it out for any batch size")


def check_inside(size: int) -> None:
    """Refuses weights inside a program that is too large to be written.

    Args:
      size: of the weights in bytes.
    """
    if size >= _LARGEST:
        raise BadInput(
            f"--weights=inside: the weights have {size / 1e9:.1f} GB, and a program holds less "
            f"than {_LARGEST / 1e9:.1f}: give --weights=beside"
        )


@contextlib.contextmanager
def any_batch() -> Iterator[None]:
    """Reports as bad input a model that cannot be traced with a symbolic batch size."""
    try:
        yield
    # A term of a user's own fails as it pleases where a size is no number.
    except Exception as error:
        raise BadInput(
            f"the program cannot be made for every batch size ({first_line(error)}): give one, "
            "as --batch=8"
        ) from error


@contextlib.contextmanager
def fixed_program() -> Iterator[None]:
    """Reports as bad input a model that jax.export refuses."""
    try:
        yield
    except (NotImplementedError, ValueError) as error:
        raise BadInput(f"jax.export refuses the program: {first_line(error)}") from error
