"""The paper's study: DeiT-Ti on CIFAR-100 under four solvers, weights shared over 1 to 12 layers.

    python -m train.prepare cifar100
    python -m train.study --study=configs/studies/cifar100_deit_ti.py --workdir=runs/cifar100

The full recipe of configs/cifar.py, for an accelerator; sequential and parallel models of the FLOPs
of the RK4 ones. Paper: arXiv 2212.06011. Hardware, hours and accuracy: not measured.
"""

import ml_collections

from configs import cifar, common


def get_config() -> common.Config:
    """Returns the study."""
    study: common.Config = ml_collections.ConfigDict()
    study.config = cifar.get_config("dataset=cifar100,variant=deit_ti,size=accelerator")
    study.grid = dict(
        depth=dict(share=(1, 2, 3, 4, 6, 12), solver=("lie_trotter", "euler", "midpoint", "rk4"))
    )
    study.matched = dict(row="rk4", by="flops", solvers=("lie_trotter", "euler"))
    study.folds = None
    study.seeds = (0, 1, 2)
    return study
