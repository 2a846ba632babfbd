"""What a study's file must hold: the checks at the border of `from_study_dict`."""

from collections.abc import Collection

from odeformer.errors import unknown
from train.config.data import ImageDataConfig
from train.config.run import RunConfig
from train.errors import BadInput

KEYS = ("config", "grid", "matched", "folds", "seeds")


def check_keys(keys: Collection[str]) -> None:
    """Raises BadInput where a study has a key that is unknown, or lacks one."""
    for key in keys:
        if key not in KEYS:
            raise BadInput(f"study: {unknown('key', key, KEYS)}")

    missing = [key for key in KEYS if key not in keys]
    if missing:
        raise BadInput(f"study: {', '.join(missing)} is missing; a study has {', '.join(KEYS)}")


def check_folds(folds: int | None, config: RunConfig) -> None:
    """Raises BadInput for folds of a data set that is not split into folds."""
    if folds is not None and not isinstance(config.data, ImageDataConfig):
        raise BadInput(
            f"study: folds={folds}: a run of task {config.task!r} has a test split of its own; "
            "set folds to None, and give seeds"
        )


def check_fixed_steps(rtol: float | None) -> None:
    """Raises BadInput for a row with adaptive steps."""
    if rtol is not None:
        raise BadInput(
            f"study: rtol={rtol} lets each input take its own steps, whose cost is not known in "
            "advance: rows have fixed steps; evaluate the finished runs under tolerances with "
            "python -m train.evaluate"
        )
