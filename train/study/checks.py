"""What a study's file must hold: the checks at the border of `from_study_dict`."""

from collections.abc import Collection, Sequence
from typing import Any

from odeformer.errors import unknown
from train.config.data import ImageDataConfig, LanguageDataConfig
from train.config.run import RunConfig
from train.config.study import MatchedConfig, StudyConfig
from train.errors import BadInput

_NEEDED = ("config", "grid")
KEYS = (
    *_NEEDED,
    *("matched", "folds", "seeds", "lengths"),
    *("tune", "metric", "margin", "contrasts"),
)


def check_keys(keys: Collection[str]) -> None:
    """Raises BadInput where a study has a key that is unknown, or lacks one."""
    for key in keys:
        if key not in KEYS:
            raise BadInput(f"study: {unknown('key', key, KEYS)}")

    missing = [key for key in _NEEDED if key not in keys]
    if missing:
        raise BadInput(
            f"study: {', '.join(missing)} is missing; a study has {', '.join(_NEEDED)}, and may "
            f"have {', '.join(KEYS[len(_NEEDED) :])}"
        )


def check_names(names: Sequence[str]) -> None:
    """Raises BadInput where several rows have one name, and so would lie in one folder."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInput(
            f"study: grid gives several rows the name {twice[0]!r}: let the grids differ in what "
            "they list, e.g. depth.layers in each of them"
        )


def check_folds(study: StudyConfig, config: RunConfig) -> None:
    """Raises BadInput for folds of a data set that is not split into folds."""
    if study.folds is not None and not isinstance(config.data, ImageDataConfig):
        raise BadInput(
            f"study: folds={study.folds}: a run of task {config.task!r} has a test split of its "
            "own; set folds to None, and give seeds"
        )


def check_tuning(study: StudyConfig, config: RunConfig, grid: Any) -> None:
    """Raises BadInput for trials that could choose by what is tested, or by nothing."""
    if study.tune is None:
        return

    both = sorted(set(study.tune.seeds) & set(study.seeds))
    if both:
        raise BadInput(
            f"study: tune.seeds and seeds both hold {', '.join(map(str, both))}: values are chosen "
            "on seeds that no run has; give others"
        )
    if not grid:
        raise BadInput(
            "study: tune.grid is missing: give the values to try, as tune = dict(grid=dict("
            "optimizer=dict(learning_rate=(1e-3, 3e-3))))"
        )

    data = config.data
    if study.folds is not None and not getattr(data, "validation_examples", 0):
        raise BadInput(
            "study: tune with folds chooses by images that no fold tests or trains on: set "
            "config.data.validation_examples, say to 200"
        )


def check_metric(metric: str, config: RunConfig) -> None:
    """Raises BadInput for a metric that the task does not have."""
    if metric == "accuracy" and isinstance(config.data, LanguageDataConfig):
        raise BadInput(
            "study: metric='accuracy' is one of classes; a language model's rows are compared by "
            "'loss'"
        )


def check_matched(matched: MatchedConfig) -> None:
    """Raises BadInput for a match that changes nothing."""
    if matched.by == "parameters" and "steps" in matched.means:
        raise BadInput(
            "study: matched.by='parameters' with matched.means='steps': the number of steps "
            "changes no parameter; take means=('layers',), or match by nfe or flops"
        )


def check_contrast(entry: Any, rows: Sequence[str]) -> None:
    """Raises BadInput for a contrast that does not name a claim and two of the rows."""
    texts = isinstance(entry, tuple | list) and all(isinstance(part, str) for part in entry)
    if not texts or len(entry) not in (3, 4) or entry[3:] not in ((), ("worse",), [], ["worse"]):
        raise BadInput(
            "study: a contrast is (claim, row, baseline), where the row is claimed to be better, "
            f"or (claim, row, baseline, 'worse'); {entry!r} was given"
        )
    for name in entry[1:3]:
        if name not in rows:
            raise BadInput(f"study: contrasts: {unknown('row', name, rows)}")
    if entry[1] == entry[2]:
        raise BadInput(f"study: contrasts: {entry[1]!r} is compared with itself; name two rows")


def check_fixed_steps(rtol: float | None) -> None:
    """Raises BadInput for a row with adaptive steps."""
    if rtol is not None:
        raise BadInput(
            f"study: rtol={rtol} lets each input take its own steps, whose cost is not known in "
            "advance: rows have fixed steps; evaluate the finished runs under tolerances with "
            "python -m train.evaluate"
        )
