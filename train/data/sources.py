"""The data sets, by name."""

from odeformer.errors import unknown
from train.data import digits
from train.data.arrays import Images
from train.errors import BadInput

_SOURCES = {"digits": digits.load}
NAMES: tuple[str, ...] = tuple(_SOURCES)


def load_splits(name: str) -> dict[str, Images]:
    """Returns the splits 'train', 'validation' and 'test' of the data set of that name.

    Raises:
      BadInput: no data set has the name.
    """
    if name not in _SOURCES:
        raise BadInput(f"config.data.name: {unknown('data set', name, NAMES)}")
    return _SOURCES[name]()
