"""What a config leaves out: of the run that the workdir holds, or from the user's own files."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from train.checkpoint.workdir import recorded_config
from train.config.border import Given, flatten, to_dict
from train.data.sizes import with_sizes


def complete(
    given: Given, changes: Mapping[str, Any], workdir: str | epath.Path | None = None
) -> dict[str, Any]:
    """Returns the changes, and what a config leaves out that follows from the user's own files.

    Args:
      given: the config, as its file has it.
      changes: values that replace those of the file.
      workdir: of the run, which keeps the values that it has.

    Raises:
      BadInput: files that are refused, or a workdir that cannot be read.
    """

    def stored() -> Mapping[str, Any] | None:
        run = None if workdir is None else recorded_config(workdir)
        return None if run is None else flatten(to_dict(run))

    return with_sizes(given, changes, stored)
