"""The config of a run that is there already: read, compared, and changed for evaluation."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from odeformer import solvers
from train.config.border import flatten, from_config_dict, known_changes, to_dict
from train.config.names import with_new_names
from train.config.refining import at_step
from train.config.run import RunConfig
from train.errors import BadInput
from train.files import absolute

CHANGEABLE_ON_RESUME = (
    *("modules", "train_steps", "mesh", "parallel", "checkpoint", "guard", "eval", "log"),
)


def to_json(config: RunConfig) -> str:
    """Returns a config as JSON, complete, as a run's config.json holds it."""
    return json.dumps(to_dict(config), indent=2, sort_keys=True)


def from_json(text: str) -> RunConfig:
    """Returns the config that `to_json` wrote, of today or of an earlier version."""
    return from_stored(json.loads(text))


def from_stored(stored: Mapping[str, Any]) -> RunConfig:
    """Returns a config that was stored as nested values, its keys by the names of their time."""
    return from_config_dict(with_new_names(stored))


def differences(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Returns both values of each key that differs and may not, where a run is resumed."""
    was, now = flatten(to_dict(old)), flatten(to_dict(new))
    # Adapted weights may have been moved: not where they are is compared, but what they are.
    changeable = {*CHANGEABLE_ON_RESUME, *(["init.path"] if new.lora.rank is not None else [])}
    return {
        key: (was.get(key), now.get(key))
        for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key)
        and not changeable & {key, key.split(".")[0]}
        and not (key == "init.path" and _is_same_place(was.get(key), now.get(key)))
    }


def _is_same_place(was: Any, now: Any) -> bool:
    """Whether two paths are one: a folder that has gone since may look like a name on the Hub."""
    return all(isinstance(x, str) for x in (was, now)) and absolute(was) == absolute(now)


def resume_conflicts(saved: RunConfig, given: RunConfig) -> list[str]:
    """Returns a line for each key that differs and may not on resume."""
    return [
        f"{key}: {old!r} in the workdir, {new!r} given"
        for key, (old, new) in differences(saved, given).items()
    ]


def for_evaluation(
    config: RunConfig, changes: Mapping[str, Any], earlier: Sequence[BadInput] = ()
) -> RunConfig:
    """Returns a run's config to evaluate under, in which changes replace what conflicts with them.

    A tolerance replaces the run's fixed steps; fixed steps, or a solver without an error estimate,
    replace its tolerances. No gradient is taken, so the adjoint is the default one, and nothing is
    regularised. The model is replicated over the devices that are there, whatever mesh it was
    trained on.

    Args:
      changes: values of keys, as {'depth.solver': 'tsit5'}.
      earlier: what the same input was refused for already, to be raised with what else is wrong.

    Raises:
      BadInput: keys or values that the config refuses.
    """
    # The weights are refined to the run's last resolution, whichever its checkpoint has.
    config = at_step(config, config.train_steps)
    values, refusals = flatten(to_dict(config)), list(earlier)
    changes = known_changes(changes, values, refusals)
    values |= changes

    depth = _depth_for_evaluation(values, changes)
    mesh = {"mesh.data": -1, "mesh.fsdp": 1, "mesh.tensor": 1}
    mesh |= {key: changes[key] for key in mesh if key in changes}
    parallel = {"parallel.mode": "jit", "parallel.accumulate": 1}
    training = {key: 0.0 for key in values if key.startswith("regularise.")}
    return from_config_dict({}, values | depth | mesh | parallel | training, refusals)


def _depth_for_evaluation(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of depth that evaluation sets, whatever the run had."""
    depth: dict[str, Any] = {"depth.adjoint": "checkpoint", "depth.policy": None}
    tolerances = ("depth.rtol", "depth.atol", "depth.max_steps")

    # A reversible pair has fixed steps.
    if changes.get("depth.rtol") is not None and changes.get("depth.reversible") is None:
        depth["depth.reversible"] = None
    asked = {key for key, value in changes.items() if value is not None}

    solver = values["depth.solver"]
    takes_no_tolerance = solver in solvers.NAMES and not solvers.is_adaptive(solver)
    loses_its_tolerance = "depth.rtol" in changes and values["depth.rtol"] is None

    if not asked & set(tolerances):
        if "depth.steps" in asked or takes_no_tolerance or loses_its_tolerance:
            depth |= dict.fromkeys(tolerances) | {"depth.per_sample": False}
    elif "depth.rtol" in asked and "depth.steps" not in asked:
        depth["depth.steps"] = None

    return depth
