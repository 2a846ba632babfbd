"""What low-rank adapters cannot be made of, and what they cannot be merged into."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from odeformer.errors import check_positive_int, unknown


def check_targets(targets: Sequence[str], paths: Sequence[str]) -> None:
    """Raises ValueError for a target that is a part of none of the kernels' paths."""
    if not paths:
        raise ValueError("targets: the model's terms have no kernels that could be adapted")

    for target in targets:
        if not any(f"/{target}/" in f"/{path}/" for path in paths):
            parts = dict.fromkeys(part for path in paths for part in path.split("/"))
            raise ValueError(f"targets: {unknown('target', target, parts)}")


def check_rank(rank: int, sides: Mapping[str, tuple[int, int]]) -> None:
    """Raises ValueError for a rank that is none, or more than a kernel can have.

    Args:
      rank: of the adapters.
      sides: by the path of each adapted kernel, its rows and columns.
    """
    check_positive_int(rank=rank)
    path, (rows, columns) = min(sides.items(), key=lambda item: min(item[1]))
    if rank > min(rows, columns):
        raise ValueError(
            f"rank={rank} is more than {path} can have, a kernel of {rows} x {columns}: take "
            f"{min(rows, columns)} or less, or other targets"
        )


def check_adapters(
    params: Mapping[tuple[str, ...], Any],
    adapters: Mapping[tuple[str, ...], Any],
    names: tuple[str, str],
) -> None:
    """Raises ValueError for adapters that do not belong to the parameters.

    Args:
      params: the parameters, by path.
      adapters: by path.
      names: the last names of an adapter's paths, A's and B's.
    """
    for path in adapters:
        kernel = params.get((*path[:-1], "kernel"))
        pair: list[Any] = [adapters.get((*path[:-1], name)) for name in names]
        if path[-1] not in names or kernel is None or any(one is None for one in pair):
            raise ValueError(
                f"the adapters have {'/'.join(path)}, which belongs to no kernel of the "
                f"parameters, or lacks its other half: make them by odeformer.lora.init"
            )

        a, b = (np.shape(one) for one in pair)
        lead = len(a) + len(b) - np.ndim(kernel) - 2
        if lead < 0 or a[-1] != b[lead] or (*a[:-1], *b[lead + 1 :]) != np.shape(kernel):
            raise ValueError(
                f"the adapters {list(a)} and {list(b)} of {'/'.join(path[:-1])} do not make up "
                f"its kernel {list(np.shape(kernel))}: make them for these parameters"
            )


def check_merged(variables: Any, collection: str = "lora") -> None:
    """Raises ValueError for variables whose adapters are still apart from the parameters."""
    if isinstance(variables, Mapping) and variables.get(collection):
        raise ValueError(
            f"the variables hold adapters ({collection!r}), which are read by model.apply alone: "
            "merge them first, by odeformer.lora.merge(variables['params'], variables['lora'])"
        )
