"""How training regularises the flow: the group `regularise` of a run's config."""

import dataclasses

from odeformer import ModelConfig, RegularisedDepth
from train.config.setting import NOT_NEGATIVE, setting
from train.errors import BadInput


@dataclasses.dataclass(frozen=True)
class RegulariseConfig:
    """What makes training prefer flows that are easy to solve; 0 leaves an entry out."""

    kinetic: float = setting(
        0.0, "Weight of the flow's kinetic energy; docs/regularised.md.", NOT_NEGATIVE
    )
    error: float = setting(
        0.0, "Weight of the solver's own error estimate, summed over its steps.", NOT_NEGATIVE
    )
    end_time: float = setting(
        0.0, "Layers by which the last group may end earlier or later, at random.", NOT_NEGATIVE
    )

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the sums in the loss, by name of the sum; those of 0 are left out."""
        both = {"kinetic": self.kinetic, "error": self.error}
        return {name: weight for name, weight in both.items() if weight}


def regularised(model: ModelConfig, regularise: RegulariseConfig) -> ModelConfig:
    """Returns the model as training applies it; the same model if nothing is regularised.

    Raises:
      BadInput: the depth does not support such a sum, or such an end.
    """
    if not regularise.weights and not regularise.end_time:
        return model

    depth = {f.name: getattr(model.depth, f.name) for f in dataclasses.fields(model.depth)}
    try:
        regular = RegularisedDepth(
            **depth, sums=tuple(regularise.weights), end_time=regularise.end_time
        )
    except ValueError as error:
        raise BadInput(f"config.regularise: {error}") from error

    return dataclasses.replace(model, depth=regular)
