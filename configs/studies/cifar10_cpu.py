"""The solvers on CIFAR-10 with a small model and few epochs, on a CPU.

    python -m train.study --study=configs/studies/cifar10_cpu.py --workdir=runs/studies/cifar10_cpu

Two epochs of configs/cifar.py:size=cpu a run. Paper: arXiv 2212.06011. Not measured.
"""

from configs import cifar, common


def get_config() -> common.Config:
    """Returns the study."""
    config = cifar.get_config("dataset=cifar10,size=cpu")
    config.train_steps = 1500

    study = common.get_study(config, depth=dict(solver=("lie_trotter", "euler", "midpoint", "rk4")))
    study.matched = dict(row="midpoint", by="flops", solvers=("lie_trotter", "euler"))
    return study
