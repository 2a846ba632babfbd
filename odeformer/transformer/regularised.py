"""A depth whose flow is regularised: its kinetic energy, its error, its end."""

import dataclasses
from typing import Any

from odeformer.checks import Accepted, setting
from odeformer.ode.checks import check_sums, check_sums_of
from odeformer.ode.problem import SUMS
from odeformer.transformer.checks import check_end_time
from odeformer.transformer.depth import DepthConfig
from odeformer.transformer.flow import Flow


def _check_length(**values: Any) -> None:
    for end_time in values.values():
        check_end_time(end_time)


_SUMS = Accepted(f"a tuple of names of {', '.join(SUMS)}", check_sums)
_LENGTH = Accepted("a finite number, 0 or more", _check_length)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegularisedDepth(DepthConfig):
    """A depth that also returns sums along its flow, and may end at a random time in training.

    The sums are what a loss can be regularised by: a model's `aux["ode"]["kinetic"]` and
    `aux["ode"]["error"]`, [G, B], of the state's dtype; nothing is added to a loss by itself.
    The other fields are those of `DepthConfig`.

    Attributes:
      sums: what is summed: 'kinetic', the integral of mean(f^2) over a sample's tokens and width
        (padding of a `TextClassifier` excepted), and 'error', the sum over steps of |h| times the
        root mean square of the error estimate; see `integrate`.
      end_time: b, in layers, less than the length T of a group: in training the last group ends at
        U(T - b, T + b) instead, in as many steps, by the rng stream 'dropout'; the whole batch ends
        there. 0: it ends at T.

    Raises:
      ValueError: a value, a name or a combination that is not accepted.
    """

    sums: tuple[str, ...] = setting(_SUMS, ())
    end_time: float = setting(_LENGTH, 0.0)

    def __post_init__(self):
        # JSON has no tuples; as a list the config could not be hashed.
        if isinstance(self.sums, list):
            object.__setattr__(self, "sums", tuple(self.sums))

        super().__post_init__()
        check_sums_of(self, self.sums)
        check_end_time(self.end_time, self.length, self.reversible)

    @property
    def flow(self) -> Flow:
        """What is done to the flow beyond integrating it."""
        return Flow(self.sums, self.end_time)
