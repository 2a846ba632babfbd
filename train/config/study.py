"""What a study repeats its rows over; the rows themselves are in its file."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from train.config.border import known_changes, settings_for, task_of
from train.config.setting import Range, Setting, checked, one_of, setting, settings_of
from train.errors import BadInput, collecting, refuse

_SEEDS = Range(
    "one or more seeds, whole numbers from 0 on",
    lambda seeds: bool(seeds) and all(isinstance(seed, int) and seed >= 0 for seed in seeds),
)
_FOLDS = Range("2 or more", lambda folds: folds >= 2)


MATCHES = ("parameters", "nfe", "flops")


@dataclasses.dataclass(frozen=True)
class MatchedConfig:
    """Which rows are compared with deeper or shallower ones of the same cost."""

    row: str = setting("rk4", "The solver of the rows that are matched.")
    by: str = setting("flops", "The cost that is to be the same.", one_of(*MATCHES))
    solvers: tuple[str, ...] = setting((), "The solvers of the rows that match them.")


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """Over what each row of a study is repeated, and what it is matched with."""

    folds: int | None = setting(None, "Folds of a cross-validation; None: no folds.", _FOLDS)
    seeds: tuple[int, ...] = setting((0,), "Each row is trained with each of these.", _SEEDS)
    matched: MatchedConfig | None = setting(  # noqa: RUF009, a dataclasses.field
        None, "A group of keys; None: no row is matched."
    )


def read_study(study: Any, changes: Mapping[str, Any]) -> StudyConfig:
    """Returns what a study's file says of these, but for changes such as {'folds': 3}.

    Raises:
      BadInput: keys that are unknown, or values that are not accepted.
    """
    settings, refusals = settings_of(StudyConfig), []
    values: dict[str, Any] = {}
    for name in ("folds", "seeds"):
        with collecting(refusals):
            value = changes.get(name, study[name])
            values[name] = checked(name, value, settings[name], "study")

    matched = changes.get("matched", study["matched"])
    if matched is not None:
        values["matched"] = _read_matched(matched, changes, refusals)

    refuse(refusals)
    return StudyConfig(**values)


def _read_matched(
    matched: Mapping[str, Any], changes: Mapping[str, Any], refusals: list[BadInput]
) -> MatchedConfig | None:
    """The group `matched`; None, and refusals, if it is not accepted."""
    known, found = settings_of(MatchedConfig), len(refusals)
    known_changes(matched, known, refusals)

    values = {}
    for name, accepted in known.items():
        with collecting(refusals):
            value = changes.get(f"matched.{name}", matched.get(name, accepted.default))
            values[name] = checked(f"matched.{name}", value, accepted, "study")

    return MatchedConfig(**values) if len(refusals) == found else None


def study_settings(study: Mapping[str, Any] | Any) -> dict[str, Setting]:
    """Returns every key of a study that a flag can set: 'folds', 'seeds', 'config.seed', ..."""
    run, matched = settings_for(task_of(study.get("config", {}))), {}
    if study.get("matched") is not None:
        matched = settings_of(MatchedConfig)

    return {
        **settings_of(StudyConfig),
        **{f"matched.{key}": setting for key, setting in matched.items()},
        **{f"config.{key}": setting for key, setting in run.items()},
    }
