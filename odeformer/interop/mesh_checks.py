"""What is refused of a mesh that weights are loaded onto, and of its rules."""

import math
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh, NamedSharding


def check_rules(mesh: Any, rules: Any) -> None:
    """Raises ValueError for a mesh and rules that do not fit one another."""
    if (mesh is None) != (rules is None):
        given, lacking = ("rules", "mesh") if mesh is None else ("mesh", "rules")
        raise ValueError(
            f"{given}= was given without {lacking}=: the mesh is the devices, and the rules map "
            "names of axes onto it, such as {'width': 'fsdp', 'heads': 'tensor'}; give both"
        )

    if mesh is None:
        return

    if not isinstance(mesh, Mesh):
        raise ValueError(f"mesh is a jax.sharding.Mesh; {mesh!r} was given")

    for name, axes in rules.items() if isinstance(rules, Mapping) else rules:
        for axis in (axes,) if isinstance(axes, str) else axes or ():
            if axis not in mesh.axis_names:
                raise ValueError(
                    f"the rule for {name!r} names the axis {axis!r} of the mesh, whose axes are "
                    f"{', '.join(map(str, mesh.axis_names))}: correct the rule"
                )


def check_divided(path: str, shape: tuple[int, ...], sharding: NamedSharding) -> None:
    """Raises ValueError where the mesh does not divide an axis of an array."""
    for size, axes in zip(shape, sharding.spec, strict=False):
        names = (axes,) if isinstance(axes, str) else axes or ()
        parts = math.prod(sharding.mesh.shape[name] for name in names)
        if size % parts:
            raise ValueError(
                f"{path} has the shape {list(shape)}, of which {size} does not divide over the "
                f"{parts} parts of the mesh's {' x '.join(names)}: leave that rule out, or take "
                "another mesh"
            )
