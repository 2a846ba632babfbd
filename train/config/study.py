"""What a study repeats its rows over, tunes and asks; the rows themselves are in its file."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from odeformer.errors import unknown
from train.config.border import settings_for, task_of
from train.config.setting import (
    COUNT,
    POSITIVE,
    Range,
    Setting,
    checked,
    one_of,
    setting,
    settings_of,
)
from train.errors import BadInput, collecting, refuse

# The seed of a run is SEEDS_PER_FOLD * seed + fold: below 2**32.
SEEDS_PER_FOLD = 1000

_SEEDS = Range(
    "one or more seeds, whole numbers from 0 on, each of them once and below 4,294,967",
    lambda seeds: (
        bool(seeds)
        and all(isinstance(seed, int) and 0 <= seed < 2**32 // SEEDS_PER_FOLD for seed in seeds)
        and len(set(seeds)) == len(seeds)
    ),
)
_FOLDS = Range("2 or more", lambda folds: folds >= 2)
_LENGTHS = Range(
    "numbers of steps greater than 0, in ascending order",
    lambda steps: all(isinstance(n, int) and n > 0 for n in steps) and _ascend(steps),
)


def _ascend(values: tuple[int, ...]) -> bool:
    return all(low < high for low, high in itertools.pairwise(values))


MATCHES = ("parameters", "nfe", "flops")
MEANS = ("steps", "layers")
METRICS = ("accuracy", "loss")
_MEANS = Range(
    "one or both of steps, layers", lambda means: bool(means) and set(means) <= set(MEANS)
)


@dataclasses.dataclass(frozen=True)
class MatchedConfig:
    """Which rows are compared with rows of another solver and the same cost."""

    row: str = setting("rk4", "The solver of the rows that are matched.")
    by: str = setting("flops", "The cost that is to be the same.", one_of(*MATCHES))
    solvers: tuple[str, ...] = setting((), "The solvers of the rows that match them.")
    means: tuple[str, ...] = setting(
        ("steps",),
        "steps: the same ODE and weights in more, smaller steps; layers: another, deeper model.",
        _MEANS,
    )


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    """The trials by which each row's own values of `tune.grid` are chosen."""

    steps: int | None = setting(None, "Of a trial; None: half of a run's.", COUNT)
    seeds: tuple[int, ...] = setting((900,), "Of the trials; no run has them.", _SEEDS)


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """Over what each row of a study is repeated, and what it is matched with."""

    folds: int | None = setting(None, "Folds of a cross-validation; None: no folds.", _FOLDS)
    seeds: tuple[int, ...] = setting((0,), "Each row is trained with each of these.", _SEEDS)
    lengths: tuple[int, ...] = setting(
        (), "Steps of the runs: N,2N, as a claim needs both; none: config.train_steps.", _LENGTHS
    )
    metric: str | None = setting(
        None, "What rows are compared by; None: loss for language, else accuracy.", one_of(*METRICS)
    )
    margin: float | None = setting(
        None,
        "Rows that differ by less are equivalent; points of accuracy, or nats.",
        POSITIVE,
    )
    matched: MatchedConfig | None = setting(  # noqa: RUF009, a dataclasses.field
        None, "A group of keys; None: no row is matched."
    )
    tune: TuneConfig | None = setting(  # noqa: RUF009, a dataclasses.field
        None, "A group of keys; None: every row takes the config's values."
    )


# The keys that are groups, and those of them that the study's file alone gives.
_GROUPS: dict[str, type] = {"matched": MatchedConfig, "tune": TuneConfig}
_OF_FILE = {"tune.grid"}


def read_study(study: Any, changes: Mapping[str, Any]) -> StudyConfig:
    """Returns what a study's file says of these, but for changes such as {'folds': 3}.

    Raises:
      BadInput: keys that are unknown, or values that are not accepted.
    """
    values, refusals = {}, []
    for name, known in settings_of(StudyConfig).items():
        with collecting(refusals):
            if name in _GROUPS:
                values[name] = _read_group(name, _GROUPS[name], study, changes)
            else:
                value = changes.get(name, study.get(name, known.default))
                values[name] = checked(name, value, known, "study")

    refuse(refusals)
    return StudyConfig(**values)


def _read_group(group: str, cls: type, study: Any, changes: Mapping[str, Any]) -> Any:
    """A group of keys; None where it is None."""
    given = changes.get(group, study.get(group))
    if given is None:
        return None

    known, values, refusals = settings_of(cls), {}, []
    accepted = [*(f"{group}.{name}" for name in known), *_OF_FILE]
    for name in given:
        if (key := f"{group}.{name}") not in accepted:
            refusals.append(BadInput(f"study: {unknown('key', key, accepted)}"))

    for name, wanted in known.items():
        with collecting(refusals):
            value = changes.get(f"{group}.{name}", given.get(name, wanted.default))
            values[name] = checked(f"{group}.{name}", value, wanted, "study")

    refuse(refusals)
    return cls(**values)


def study_settings(study: Mapping[str, Any] | Any) -> dict[str, Setting]:
    """Returns every key of a study that a flag can set: 'folds', 'seeds', 'config.seed', ..."""
    run = settings_for(task_of(study.get("config", {})))
    groups = {
        f"{group}.{key}": setting
        for group, cls in _GROUPS.items()
        if study.get(group) is not None
        for key, setting in settings_of(cls).items()
    }

    return {
        **settings_of(StudyConfig),
        **groups,
        **{f"config.{key}": setting for key, setting in run.items()},
    }
