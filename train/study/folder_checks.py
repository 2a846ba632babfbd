"""Whether a workdir's runs, and what was declared of them, are those of a study."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from train.errors import BadInput


def check_no_others(path: epath.Path, others: Sequence[str]) -> None:
    """Refuses a workdir with runs that are not the study's, by their names."""
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        raise BadInput(
            f"{path} holds runs of another study: {', '.join(others[:5])}{more}. Take another "
            "--workdir, or delete this one; a study may gain rows, folds and seeds there, and lose "
            "none"
        )


def check_no_conflict(folder: epath.Path, conflicts: Sequence[str]) -> None:
    """Refuses a folder that holds a run of another config, by what differs."""
    if conflicts:
        raise BadInput(
            f"{folder} holds a run of another study:\n  " + "\n  ".join(conflicts) + "\n"
            "Take another --workdir, or delete this one."
        )


def contrast_key(contrast: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what makes two contrasts the same one."""
    return tuple(contrast[name] for name in ("text", "row", "baseline", "expected"))


def check_declared(file: epath.Path, first: Mapping[str, Any], declared: Mapping[str, Any]) -> None:
    """Refuses a study whose record, of before its first run, says otherwise."""
    for key in ("metric", "margin", "tune"):
        if first[key] != declared[key]:
            raise BadInput(
                f"{file}: {key} was declared as {first[key]!r} before the first run; "
                f"{declared[key]!r} was given: take another --workdir"
            )

    kept = {contrast_key(contrast) for contrast in declared["contrasts"]}
    lost = [
        contrast_key(contrast)
        for contrast in first["contrasts"]
        if contrast_key(contrast) not in kept
    ]
    if lost:
        raise BadInput(
            f"{file}: the contrast {lost[0]} was declared before the first run and is missing "
            "now: what was declared is reported; put it back, or take another --workdir"
        )
