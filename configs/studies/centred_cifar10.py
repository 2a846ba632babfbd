"""Centred attention on CIFAR-10, small enough for a CPU.

    python -m train.study --study=configs/studies/centred_cifar10.py \\
        --study.config.data.data_dir=DIR --workdir=runs/studies/centred_cifar10

configs/studies/centred.py on other images: patches of 8 pixels (17 tokens), width 64, and five
seeds, tested on the 10,000 test images; 1,500 steps, then 3,000. 'Yes' is what it is there, over
seeds and over test images; 'equivalent' within 1 point.

Source: arXiv 2306.01610. Not measured.
"""

from configs import common
from configs.studies import cifar10_small


def get_config() -> common.Config:
    """Returns the study."""
    small = cifar10_small.get_config()
    small.config.depth.solver = "euler"

    study = common.get_centred_study(small.config, layers=6)
    for name in ("seeds", "lengths", "tune", "margin"):
        study[name] = small[name]
    return study
