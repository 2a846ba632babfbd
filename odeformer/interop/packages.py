"""Packages that only this room needs."""

import importlib
from typing import Any


def needed(module: str) -> Any:
    """Returns a module of the extra 'pretrained'.

    Raises:
      ImportError: its package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if error.name != package:
            raise

        raise ImportError(
            f"reading and writing pretrained weights needs the package {package}, which is not "
            "installed: pip install 'odeformer-jax[pretrained]'"
        ) from None
