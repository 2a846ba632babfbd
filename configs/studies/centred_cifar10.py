"""Centred attention on CIFAR-10, small enough for a CPU.

    python -m train.study --study=configs/studies/centred_cifar10.py \\
        --study.config.data.data_dir=DIR --workdir=runs/studies/centred_cifar10

configs/studies/centred.py on other images: patches of 8 pixels (17 tokens), width 64, and five
seeds, tested on the 10,000 test images; 1,500 steps, then 3,000. 'Yes' is what it is there, over
seeds and over test images; 'equivalent' within 1 point.

Source: arXiv 2306.01610. Not measured.
"""

from configs import cifar, common


def get_config() -> common.Config:
    """Returns the study."""
    config = cifar.get_config("dataset=cifar10,size=cpu")
    config.train_steps = 1500
    config.model.update(patch_size=8, width=64, heads=4, mlp=128, pool="token")
    config.depth.solver = "euler"
    config.optimizer.warmup_steps = 100

    # Longer than any run: scored and saved at its end.
    config.eval.every_steps = 3000
    config.checkpoint.update(every_steps=3000, keep=1)
    config.log.every_steps = 50

    study = common.get_centred_study(config, layers=6)
    study.seeds = (0, 1, 2, 3, 4)
    study.lengths = (1500, 3000)
    study.tune = dict(
        grid=dict(optimizer=dict(learning_rate=(1e-3, 3e-3, 9e-3))), steps=750, seeds=(900,)
    )
    study.margin = 1.0
    return study
