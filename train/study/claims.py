"""The paper's claims, as far as a study's rows can test them."""

import dataclasses
from collections.abc import Sequence

from odeformer import solvers
from train.study.rows import Row

# claim, the row's solver, the baseline's solver
_COMPARISONS = (
    ("parallel beats sequential", "euler", "lie_trotter"),
    ("higher order beats the parallel layer", "midpoint", "euler"),
    ("higher order beats the parallel layer", "rk4", "euler"),
)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A contrast that is declared before a study runs.

    Attributes:
      text: the claim.
      row: the name of a row.
      baseline: that of the row it is compared with: differences are row - baseline.
      expected: what the claim says of the row, 'better' or 'worse'.
    """

    text: str
    row: str
    baseline: str
    expected: str = "better"


def find_claims(rows: Sequence[Row]) -> list[Claim]:
    """Returns the claims that compare two of the rows.

    Source: Zhong et al., 'A Neural ODE Interpretation of Transformer Layers', arXiv 2212.06011.
    """
    # Matched rows are compared with their target alone, below.
    names = {_traits(row): row.name for row in rows if row.match is None}

    claims = []
    for (solver, share, rest), name in names.items():
        for text, better, worse in _COMPARISONS:
            baseline = names.get((worse, share, rest))
            if solver == better and baseline:
                claims.append(Claim(text, name, baseline))

        unshared = names.get((solver, 1, rest))
        if share > 1 and unshared:
            claims.append(Claim("sharing weights costs accuracy", name, unshared, "worse"))

    for row in rows:
        if row.match:
            by, target = row.match
            claims.append(Claim(f"the same at equal {by}", target, row.name))

    return claims


def _traits(row: Row) -> tuple[str, int, str]:
    """Solver, share, and what else the row's name says."""
    depth = row.config.model.depth
    solver = solvers.name_of(depth.solver)
    return solver, depth.share, row.name.partition(f"share {depth.share}")[2]
