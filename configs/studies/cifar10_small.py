"""The paper's claims on CIFAR-10, with a small model, on a CPU.

    python -m train.prepare cifar10
    python -m train.study --study=configs/studies/cifar10_small.py --workdir=runs/studies/cifar10

Six layers of width 64 on patches of 8 pixels (17 tokens): sequential, parallel, midpoint and RK4,
every layer with weights of its own (share 1) or all with one set (share 6). Each row's learning
rate is chosen by 2,000 images held out of the training split; five seeds, tested on the 10,000 test
images; 1,500 steps, then 3,000.

What would count as 'yes', written before the first run: of the eight contrasts below, a difference
in test accuracy in the direction claimed whose p-value, corrected by Holm, is below 0.05 after
1,500 steps and after 3,000, over seeds and over test images. 'Equivalent': the 90 % interval lies
within 1 point.

Paper: arXiv 2212.06011. Begun, and not finished: docs/studies.md.
"""

from configs import cifar, common


def get_config() -> common.Config:
    """Returns the study."""
    config = cifar.get_config("dataset=cifar10,size=cpu")
    config.train_steps = 1500
    config.model.update(patch_size=8, width=64, heads=4, mlp=128, pool="token")
    config.depth.layers = 6
    config.optimizer.warmup_steps = 100

    # Longer than any run: scored and saved at its end.
    config.eval.every_steps = 3000
    config.checkpoint.update(every_steps=3000, keep=1)
    config.log.every_steps = 50

    solvers = ("lie_trotter", "euler", "midpoint", "rk4")
    study = common.get_study(config, depth=dict(share=(1, 6), solver=solvers))
    study.seeds = (0, 1, 2, 3, 4)
    study.lengths = (1500, 3000)
    study.tune = dict(
        grid=dict(optimizer=dict(learning_rate=(1e-3, 3e-3, 9e-3))), steps=750, seeds=(900,)
    )

    study.margin = 1.0
    study.contrasts = common.get_contrasts(shares=(1, 6))
    return study
