"""What the configs of all models have: a vector field, and its depth."""

import dataclasses

from odeformer.checks import check_settings
from odeformer.ode.problem_checks import check_recoverable
from odeformer.transformer import term_checks, terms
from odeformer.transformer.checks import check_causal
from odeformer.transformer.config import DepthConfig, FieldConfig, as_depth
from odeformer.transformer.field import transformer_field
from odeformer.transformer.norms import param_dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(FieldConfig):
    """A transformer; the other fields are those of `FieldConfig`.

    Attributes:
      depth: how the depth is integrated; a mapping of DepthConfig's fields becomes one.

    Raises:
      ValueError: sizes or terms that do not fit one another, a name that is not accepted, a term
        that reads a source, which these models do not give, or adaptive steps of a causal model,
        under which a token's output would depend on later tokens, or a reversible pair that
        rounding keeps from being recovered.
    """

    depth: DepthConfig = dataclasses.field(default_factory=DepthConfig)

    def __post_init__(self):
        object.__setattr__(self, "depth", as_depth(self.depth))

        # JSON has no tuples; as a list the config could not be hashed.
        if isinstance(self.terms, list):
            object.__setattr__(self, "terms", tuple(self.terms))
        check_settings(self)

        # The field refuses sizes and terms that it cannot take together.
        transformer_field(self)
        term_checks.check_sources(terms.select(self.terms), self)
        if self.causal:
            check_causal(self.depth.rtol)

        # In the state's dtype, whatever that of the matrix products is.
        depth = self.depth
        if depth.reversible is not None:
            steps = depth.groups * (depth.fixed_steps or 1)
            check_recoverable(depth.reversible, steps, param_dtype(self.dtype))
