"""The paper's study: DeiT-Ti on CIFAR-10 under four solvers, weights shared over 1 to 12 layers.

    python -m train.prepare cifar10
    python -m train.study --study=configs/studies/cifar10_deit_ti.py --workdir=runs/cifar10

The full recipe of configs/cifar.py, for an accelerator; sequential and parallel models of the FLOPs
of the RK4 ones. Paper: arXiv 2212.06011. Hardware, hours and accuracy: not measured.
"""

from configs import cifar, common


def get_config() -> common.Config:
    """Returns the study."""
    config = cifar.get_config("dataset=cifar10,variant=deit_ti,size=accelerator")
    return common.get_solver_study(config)
