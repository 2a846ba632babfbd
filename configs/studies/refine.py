"""Coarse to fine over depth on handwritten digits, by five-fold cross-validation on a CPU.

    python -m train.study --study=configs/studies/refine.py --workdir=runs/studies/refine

Eight parallel layers (Euler) of width 32, under each of three bases: fine from the start, or with a
quarter of the resolution, which is doubled after 100 steps and after 200.

| basis | coarse to fine, sets of weights | fine from the start |
|---|---|---|
| constant | 2, 4, 8 | 8 |
| hat | 3, 5, 9 | 9 |
| legendre | 2, 4, 8 | 8 |

A step costs the same throughout; the table of costs shows the parameters that a row begins with.
200 images lie outside of every fold: by them each row's learning rate is chosen. The others are
tested once each.

What would count as 'yes', written before the first run: of the three contrasts below, a test
accuracy that is higher with refining, after 400 steps and after 800, at a p-value below 0.05,
corrected by Holm. 'Equivalent': the 90 % interval lies within 1.5 points. Runs of both lengths are
refined after the same steps, so that the longer ones are fine for three quarters of their time, and
not for half of it.

Source: arXiv 2106.10820. Not measured.
"""

from configs import common

REFINED = "coarse to fine beats fine from the start"
REFINE_AT = (100, 200)


def get_config() -> common.Config:
    """Returns the study."""
    config = common.get_small_digits(layers=8, solver="euler")

    fine = (
        dict(share=(1,)),
        dict(basis=("hat",), coefficients=(9,)),
        dict(basis=("legendre",), coefficients=(8,)),
    )
    coarse = (
        dict(share=(4,)),
        dict(basis=("hat",), coefficients=(3,)),
        dict(basis=("legendre",), coefficients=(2,)),
    )
    study = common.get_folds_study(config)
    study.grid = [dict(depth=depth) for depth in fine]
    study.grid += [dict(depth=dict(depth, refine_at=(REFINE_AT,))) for depth in coarse]

    # A trial is refined as a run is: it must be longer than what comes before.
    study.tune.steps = 400

    pairs = (
        ("share 4", "share 1"),
        ("share 1, basis hat, coefficients 3", "share 1, basis hat, coefficients 9"),
        ("share 1, basis legendre, coefficients 2", "share 1, basis legendre, coefficients 8"),
    )
    study.contrasts = tuple(
        (REFINED, f"euler, {start}, refine_at {REFINE_AT}", f"euler, {end}") for start, end in pairs
    )
    return study
