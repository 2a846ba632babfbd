"""The paper's claims on CIFAR-10 with a model of DeiT-Ti's width, on one accelerator.

    python -m train.prepare cifar10
    python -m train.study --study=configs/studies/cifar10_gpu.py --workdir=runs/studies/cifar10_gpu

The arguments: epochs=20|10|5|2|1, size=accelerator|smoke. Six layers of width 192 in bfloat16 on
patches of 4 pixels, batches of 512: sequential, parallel, midpoint and RK4, every layer with
weights of its own. Each row's learning rate is chosen by 2,000 images held out of the training
split, in half as many epochs; then five seeds, tested on the 10,000 test images.

What would count as 'yes', written before the first run: of the three contrasts below, a difference
in test accuracy in the direction claimed whose p-value, corrected by Holm, is below 0.05, over
seeds and over test images. 'Equivalent': the 90 % interval lies within 1 point. One number of steps
alone decides no claim.

Paper: arXiv 2212.06011. `python -m benchmarks.accelerator --sections=study` runs it within its
budget, with fewer epochs where it has to. Not measured.
"""

from configs import cifar, common

EPOCH_STEPS = 93  # of 48,000 images in batches of 512


def get_config(argument: str | None = None) -> common.Config:
    """Returns the study of the argument's choices."""
    choice = common.parse(
        argument, epochs=("20", "10", "5", "2", "1"), size=("accelerator", "smoke")
    )
    study = _get_study(int(choice.epochs) * EPOCH_STEPS)
    if choice.size == "smoke":
        _shrink(study)
    return study


def _get_study(steps: int) -> common.Config:
    config = cifar.get_config("dataset=cifar10,variant=deit_ti,size=accelerator")
    config.train_steps = steps

    # The recipe is one of 300 epochs: so few need less against overfitting.
    config.data.augment = dict(crop_padding_px=4, flip=True)
    config.model.drop_path = 0.0
    config.depth.update(layers=6, adjoint="store")
    config.optimizer.update(warmup_steps=min(93, steps // 4), label_smoothing=0.0)
    config.eval.every_steps = steps
    config.checkpoint.update(every_steps=steps, keep=1)
    config.log.every_steps = 20

    solvers = ("lie_trotter", "euler", "midpoint", "rk4")
    study = common.get_study(config, depth=dict(share=(1,), solver=solvers))
    study.seeds = (0, 1, 2, 3, 4)
    study.tune = dict(
        grid=dict(optimizer=dict(learning_rate=(1e-3, 2e-3, 4e-3))), steps=steps // 2, seeds=(900,)
    )

    study.margin = 1.0
    study.contrasts = common.get_contrasts(shares=(1,))
    return study


def _shrink(study: common.Config) -> None:
    """Shows that everything runs, at a size for any machine."""
    config = study.config
    config.update(train_steps=4, batch_size=16)
    config.model.update(width=16, heads=2, mlp=32, dtype="float32")
    config.depth.layers = 2
    config.optimizer.warmup_steps = 1
    config.log.every_steps = 1
    study.seeds = (0, 1)
    study.tune.steps = 2
