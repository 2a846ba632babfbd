"""The paper's claims on handwritten digits, by five-fold cross-validation on a CPU.

    python -m train.study --study=configs/studies/digits.py --workdir=runs/studies/digits

A check of the method more than of the claims: the images are so few that the smallest difference
that five folds can show is near the margin. Six layers of width 32, every layer with weights of its
own (share 1) or all with one set (share 6): sequential, parallel, midpoint and RK4, and sequential
and parallel models that take as many evaluations as RK4 in smaller steps over the same interval.
200 images lie outside of every fold: by them each row's learning rate is chosen. The others are
tested once each.

What would count as 'yes', written before the first run: of the twelve contrasts below, a difference
in test accuracy in the direction claimed whose p-value, corrected by Holm, is below 0.05.
'Equivalent': the 90 % interval lies within 1.5 points. One number of steps alone decides no claim.

Paper: arXiv 2212.06011. 156 runs; 351 ms of a CPU core per step of all twelve rows (26 November
2026), so about 70 minutes on 2 quiet cores. Results: docs/claims.md.
"""

from configs import common

STEPS = "RK4 beats as many evaluations in smaller steps"


def get_config() -> common.Config:
    """Returns the study."""
    config = common.get_small_digits(layers=6)
    config.train_steps = 800

    solvers = ("lie_trotter", "euler", "midpoint", "rk4")
    study = common.get_study(config, depth=dict(share=(1, 6), solver=solvers))
    study.matched = dict(row="rk4", by="nfe", solvers=("lie_trotter", "euler"), means=("steps",))
    study.folds = 5
    study.seeds = (0, 1)
    study.tune = dict(
        grid=dict(optimizer=dict(learning_rate=(4.5e-3, 9e-3, 1.8e-2))), steps=400, seeds=(900,)
    )

    study.margin = 1.5
    study.contrasts = (
        *common.get_contrasts(shares=(1, 6)),
        (STEPS, "rk4, share 1", "euler, share 1, steps 4"),
        (STEPS, "rk4, share 6", "euler, share 6, steps 24"),
        (STEPS, "rk4, share 1", "lie_trotter, share 1, steps 4"),
        (STEPS, "rk4, share 6", "lie_trotter, share 6, steps 24"),
    )
    return study
