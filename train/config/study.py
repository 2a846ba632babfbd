"""What a study repeats its rows over; the rows themselves are in its file."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from train.config.border import check_key, checked, settings_for, task_of
from train.config.setting import Range, Setting, one_of, setting, settings_of

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
      BadInput: a key that is unknown, or a value that is not accepted.
    """
    settings, matched = settings_of(StudyConfig), changes.get("matched", study["matched"])
    folds, seeds = (
        checked(name, changes.get(name, study[name]), settings[name], "study")
        for name in ("folds", "seeds")
    )
    if matched is None:
        return StudyConfig(folds, seeds)

    known = settings_of(MatchedConfig)
    for name in matched:
        check_key(name, known)
    values = {
        name: changes.get(f"matched.{name}", matched.get(name, setting.default))
        for name, setting in known.items()
    }
    values = {
        name: checked(f"matched.{name}", value, known[name], "study")
        for name, value in values.items()
    }
    return StudyConfig(folds, seeds, MatchedConfig(**values))


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
