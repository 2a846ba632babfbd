"""The reversible pair against its base solver, on handwritten digits, by five folds on a CPU.

    python -m train.study --study=configs/studies/reversible.py --workdir=runs/studies/reversible

Six layers of width 32, every layer with weights of its own (share 1) or all with one set (share 6),
under midpoint and RK4: the plain solver, and its pair with adjoint 'reversible', which evaluates
twice as often and stores no states. 200 images lie outside of every fold: by them each row's
learning rate is chosen. The others are tested once each.

What would count as 'yes', written before the first run: of the four contrasts below, a test
accuracy that is lower under the pair, after 400 steps and after 800, at a p-value below 0.05,
corrected by Holm: the pair costs accuracy. 'Equivalent': the 90 % interval lies within 1.5 points.
Runs whose last `val/reversible_error` is above 1e-3 are named with the result: their gradients are
not exact, and a row that has one says nothing of the pair itself.

Source: arXiv 2410.11648. Not measured.
"""

from configs import common

COSTS = "the reversible pair costs accuracy"
LAMBDA = 0.999


def get_config() -> common.Config:
    """Returns the study."""
    config = common.get_small_digits(layers=6)

    solvers, shares = ("midpoint", "rk4"), (1, 6)
    base = dict(share=shares, solver=solvers)
    pair = dict(base, reversible=(LAMBDA,), adjoint=("reversible",))
    study = common.get_folds_study(config)
    study.grid = [dict(depth=base), dict(depth=pair)]

    rows = [f"{solver}, share {share}" for share in shares for solver in solvers]
    study.contrasts = tuple(
        (COSTS, f"{row}, reversible {LAMBDA}, adjoint reversible", row, "worse") for row in rows
    )
    return study
