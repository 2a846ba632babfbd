"""The sets that can be prepared here, by name."""

import dataclasses
from typing import Any

import tensorflow_datasets as tfds

from odeformer.errors import unknown
from train.errors import BadInput
from train.prepare.archive import Archive
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
    _check_name(name, by_name)

    # tensorflow-datasets records the size and the checksum of each official file.
    recorded: Any = tfds.builder_cls(name).url_infos
    archives = (Archive(url, int(file.size), file.checksum) for url, file in recorded.items())
    return Source(by_name[name], tuple(archives))


def _check_name(name: str, accepted: dict[str, Any]) -> None:
    # The one set of the configs whose archives cannot be downloaded without an account.
    if name == "imagenet2012":
        raise BadInput(
            "imagenet2012 is not prepared here: prepare it once with tensorflow-datasets and "
            "TensorFlow (`tfds build imagenet2012 --file_format=array_record`, with the official "
            "archives), then read it from its folder, with --config.data.data_dir"
        )
    if name not in accepted:
        raise BadInput(
            f"{unknown('set', name, accepted)} Others are prepared with tensorflow-datasets "
            "and TensorFlow."
        )
