"""Which tensors of a file make up which of our arrays, and how: a map that serves both ways."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

# The path of parameters whose leading axis is the layers.
LAYERS = "depth/groups/"


class Leaf(NamedTuple):
    """One of our arrays; if it belongs to the depth, its part for one layer.

        ours = stack(tensors).reshape(view).transpose(axes).reshape(shape)

    If a tensor holds several of our arrays, one below the other, the array has its own rows only.

    Attributes:
      names: names of the tensors that make up the array; `{}` stands for a layer's number.
      theirs: the shape of each of these tensors.
      view: the shape in which the axes of the stacked tensors are separate.
      axes: the order of these axes in our array.
      shape: the shape of our array, with its padding.
      padding: zeros that our array has before and after each axis, and theirs lack; None: no zeros.
      part: which of `parts` equal parts of each tensor's rows belongs to the array, from 0.
      parts: how many of our arrays share each tensor.
    """

    names: tuple[str, ...]
    theirs: tuple[int, ...]
    view: tuple[int, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    padding: tuple[tuple[int, int], ...] | None = None
    part: int = 0
    parts: int = 1

    def ours(self, tensors: Sequence[np.ndarray]) -> np.ndarray:
        """Makes our array from their tensors."""
        own = [np.split(tensor, self.parts)[self.part] for tensor in tensors]
        stacked = np.stack(own) if len(own) > 1 else own[0]
        turned = stacked.reshape(self.view).transpose(self.axes)
        return (np.pad(turned, self.padding) if self.padding else turned).reshape(self.shape)

    def tensors(self, ours: np.ndarray) -> list[np.ndarray]:
        """Makes the array's part of their tensors: the inverse of `ours`, without padding."""
        turned = ours.reshape([self.view[axis] for axis in self.axes])
        stacked = turned.transpose(np.argsort(self.axes))
        rows, *others = self.theirs
        stacked = stacked.reshape(len(self.names), rows // self.parts, *others)
        return [np.ascontiguousarray(tensor) for tensor in stacked]


Layout = Mapping[str, Leaf]


def same(name: str, *shape: int) -> Leaf:
    """A tensor that is stored as we keep it."""
    return Leaf((name,), shape, shape, tuple(range(len(shape))), shape)


def transposed(name: str, rows: int, columns: int) -> Leaf:
    """A matrix [rows, columns] that we keep as [columns, rows]."""
    return Leaf((name,), (rows, columns), (rows, columns), (1, 0), (columns, rows))


def norm(path: str, name: str, width: int) -> dict[str, Leaf]:
    """Scale and bias of a layer norm."""
    return {
        f"{path}/scale": same(f"{name}.weight", width),
        f"{path}/bias": same(f"{name}.bias", width),
    }


def linear(path: str, name: str, inputs: int, outputs: int) -> dict[str, Leaf]:
    """Kernel and bias of a dense layer, whose kernel is stored as [outputs, inputs]."""
    return {
        f"{path}/kernel": transposed(f"{name}.weight", outputs, inputs),
        f"{path}/bias": same(f"{name}.bias", outputs),
    }


def packed(paths: Sequence[str], name: str, inputs: int, outputs: int) -> dict[str, Leaf]:
    """Kernels and biases of dense layers of one size, stored as one layer in this order."""
    return {
        path: leaf._replace(
            theirs=(len(paths) * leaf.theirs[0], *leaf.theirs[1:]), part=part, parts=len(paths)
        )
        for part, layer in enumerate(paths)
        for path, leaf in linear(layer, name, inputs, outputs).items()
    }


def of_layers(leaves: Layout) -> dict[str, Leaf]:
    """The leaves of one layer, under their paths in a model's tree of parameters."""
    return {f"{LAYERS}{path}": leaf for path, leaf in leaves.items()}


def tensors_of(layout: Layout, layers: int) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of a file, by name."""
    return {
        name.format(layer): leaf.theirs
        for path, leaf in layout.items()
        for layer in range(layers if path.startswith(LAYERS) else 1)
        for name in leaf.names
    }
