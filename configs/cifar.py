"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from scratch, by the DeiT recipe at 32 pixels.

    python -m train.prepare cifar100
    python -m train --config=configs/cifar.py:dataset=cifar100 --workdir=runs/cifar100
    python -m train --config=configs/cifar.py:size=cpu --workdir=runs/cifar10_cpu

The argument: dataset=cifar10|cifar100, variant=deit_ti|deit_s, size=accelerator|cpu|smoke.

- size=accelerator: the recipe of Touvron et al. 2021 (arXiv 2012.12877), with what small images
  need: patch 4 and a padded crop. 300 epochs. Hardware, hours and accuracy: not measured.
- size=cpu: four narrow layers, 6.4 epochs. Hardware: 2 CPU cores, 26 minutes on a busy machine.
  Test accuracy on CIFAR-10: 65.7 % (20 November 2026; images kept as JPEG).
- size=smoke: a few steps that show that everything runs.

Paper: Zhong et al. 2022, arXiv 2212.06011. The depth is the parallel layer's; others by flag, e.g.
--config.depth.solver=rk4 --config.depth.share=12.
"""

from configs import common

CLASSES = {"cifar10": 10, "cifar100": 100}
EXAMPLES = 48_000  # of 50,000; the others are held out for validation


def get_config(argument: str | None = None) -> common.Config:
    """Returns the config of the argument's choices."""
    choice = common.parse(
        argument,
        dataset=("cifar10", "cifar100"),
        variant=("deit_ti", "deit_s"),
        size=("accelerator", "cpu", "smoke"),
    )
    cfg = _get_accelerator(choice.variant) if choice.size == "accelerator" else _get_cpu()
    if choice.size == "smoke":
        cfg.update(train_steps=4, batch_size=16)
        cfg.optimizer.warmup_steps = 1

    cfg.data.name = choice.dataset
    cfg.data.validation_examples = 50_000 - EXAMPLES
    cfg.model.classes = CLASSES[choice.dataset]
    return cfg


def _get_accelerator(variant: str) -> common.Config:
    batch_size, epochs = 512, 300
    steps_per_epoch = EXAMPLES // batch_size

    cfg = common.get_run("images", train_steps=epochs * steps_per_epoch, batch_size=batch_size)
    cfg.data.augment = dict(crop_padding_px=4, **common.DEIT_AUGMENT)
    cfg.model.update(preset=variant, image_size=32, patch_size=4, drop_path=0.1, dtype="bfloat16")
    cfg.depth.solver = "euler"

    cfg.optimizer.update(
        learning_rate=1e-3,
        warmup_steps=20 * steps_per_epoch,
        weight_decay=0.05,
        clip_norm=1.0,
        label_smoothing=0.1,
    )
    return cfg


def _get_cpu() -> common.Config:
    cfg = common.get_run("images", train_steps=4800, batch_size=64)
    cfg.data.augment.flip = True
    cfg.model.update(
        image_size=32,
        patch_size=4,
        width=128,
        heads=4,
        mlp=256,
        pool="mean",
        positions="sincos",
    )
    cfg.depth.update(layers=4, solver="lie_trotter")

    cfg.optimizer.update(learning_rate=1.5e-3, warmup_steps=200, clip_norm=1.0, ema_decay=0.995)
    return cfg
