"""The sets that can be prepared here, by name."""

import dataclasses
from typing import Any

import tensorflow_datasets as tfds

from train.prepare.archive import Archive
from train.prepare.checks import check_name
from train.prepare.cifar import Cifar10, Cifar100
from train.prepare.mnist import MNIST, FashionMNIST
from train.prepare.shakespeare import TinyShakespeare

BUILDERS = (Cifar10, Cifar100, MNIST, FashionMNIST, TinyShakespeare)


@dataclasses.dataclass(frozen=True)
class Source:
    """A set that can be prepared: its builder, and the published files that it is built from."""

    builder: type[Cifar10] | type[MNIST] | type[TinyShakespeare]
    archives: tuple[Archive, ...]


def find(name: str) -> Source:
    """Returns the set of that name.

    Raises:
      BadInput: it cannot be prepared here; the message names the sets that can.
    """
    by_name = {builder.name: builder for builder in BUILDERS}
    check_name(name, by_name)

    # tensorflow-datasets records the size and the checksum of each official file.
    recorded: Any = tfds.builder_cls(name).url_infos
    archives = (Archive(url, int(file.size), file.checksum) for url, file in recorded.items())
    return Source(by_name[name], tuple(archives))
