"""The solvers on CIFAR-10 with a small model and few epochs, on a CPU.

    python -m train.study --study=configs/studies/cifar10_cpu.py --workdir=runs/studies/cifar10_cpu

Two epochs of configs/cifar.py:size=cpu a run. Paper: arXiv 2212.06011. Not measured.
"""

import ml_collections

from configs import cifar, common


def get_config() -> common.Config:
    """Returns the study."""
    study: common.Config = ml_collections.ConfigDict()
    study.config = cifar.get_config("dataset=cifar10,size=cpu")
    study.config.train_steps = 1500
    study.grid = dict(depth=dict(solver=("lie_trotter", "euler", "midpoint", "rk4")))
    study.matched = dict(row="midpoint", by="flops", solvers=("lie_trotter", "euler"))
    study.folds = None
    study.seeds = (0, 1, 2)
    return study
