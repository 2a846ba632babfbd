"""Bases for weights over depth on handwritten digits, by five-fold cross-validation on a CPU.

    python -m train.study --study=configs/studies/depth_basis.py --workdir=runs/studies/depth_basis

Twelve parallel layers (Euler) of width 32, whose weights are a function of depth: constant over six
groups, or over four; piecewise linear between 4 nodes; 4 Legendre polynomials. All four are of
equal FLOPs, and the last three of equal parameters. With an MLP of twice the size, 4 nodes or
polynomials have as many parameters as the six groups. 200 images lie outside of every fold: by them
each row's learning rate is chosen. The others are tested once each.

What would count as 'yes', written before the first run: of the six contrasts below, a difference in
test accuracy in the direction claimed, after 400 steps and after 800, at a p-value below 0.05,
corrected by Holm. 'Equivalent': the 90 % interval lies within 1.5 points.

The last row has 8 polynomials. It is compressed once it is trained, without training: for each of
its runs of 800 steps

    python -m train.project --workdir=RUN --config.depth.coefficients=4
    python -m train.project --workdir=RUN --config.depth.basis=hat --config.depth.coefficients=4
    python -m train.project --workdir=RUN --config.depth.basis=constant --config.depth.share=3 \\
        --config.depth.coefficients=None

prints the test accuracy before and after. Compression is free where the accuracy after it, against
that of the run itself, has a 90 % interval over the five folds, each the mean of its seeds, within
1.5 points; it pays where it is above that of the row which was trained with 4 sets in that basis,
in a paired t-test at a p-value below 0.05, corrected by Holm for three.

Sources: arXiv 2002.08071, 2106.10820. 140 runs and 14 trials: 1 h 47 min on 2 CPU cores shared with
other work, 27 November 2026. No contrast is distinguishable, and compression is not free:
docs/studies.md.
"""

from configs import common

BOTH = "smooth weights beat groups at equal parameters and FLOPs"
FLOPS = "fewer, smooth weights cost accuracy at equal FLOPs"
PARAMETERS = "fewer, wider, smooth weights beat groups at equal parameters"
BASES = ("hat", "legendre")


def get_config() -> common.Config:
    """Returns the study."""
    config = common.get_small_digits(layers=12, solver="euler")

    # In a set of weights of width 32, an MLP of 128 in place of 64 stands for half a set.
    smooth = dict(depth=dict(basis=BASES, coefficients=(4,)), model=dict(mlp=(64, 128)))
    study = common.get_folds_study(config)
    study.grid = [
        dict(depth=dict(share=(2, 3))),
        smooth,
        dict(depth=dict(basis=("legendre",), coefficients=(8,))),
    ]

    rows = {
        (basis, mlp): f"euler, share 1, basis {basis}, coefficients 4, mlp {mlp}"
        for basis in BASES
        for mlp in (64, 128)
    }
    study.contrasts = (
        *((BOTH, rows[basis, 64], "euler, share 3") for basis in BASES),
        *((FLOPS, rows[basis, 64], "euler, share 2", "worse") for basis in BASES),
        *((PARAMETERS, rows[basis, 128], "euler, share 2") for basis in BASES),
    )
    return study
