"""ImageNet-1k (Russakovsky et al. 2015) from scratch at 224 pixels, on one host or a TPU pod slice.

    python -m train --config=configs/imagenet.py:variant=deit_s \\
        --config.data.data_dir=gs://bucket/tfds --workdir=gs://bucket/runs/imagenet_deit_s
    python -m train.aot --config=configs/imagenet.py:variant=vit_l --topology=v5e:16x16

The argument: variant=deit_ti|deit_s|vit_b|vit_l. imagenet2012 is read from data_dir, where
tensorflow-datasets has prepared it (file format array_record): that takes the official archives and
an installation of TensorFlow, once.

- deit_ti, deit_s, vit_b: Touvron et al. 2021, arXiv 2012.12877: 12 layers, 300 epochs, repeated
  augmentation, batch 1024. Published test accuracy of the sequential models: 72.2, 79.8, 81.8 %.
  The mesh: every device holds the whole state (data=-1).
- vit_l: the supervised baseline of He et al. 2021, arXiv 2111.06377, table 11: 24 layers, 200
  epochs, batch 4096 with a learning rate of 1e-4 for each 256 of it, drop-path 0.2, an average of
  the weights. Published test accuracy of the sequential model: 82.6 %. The mesh: the state is split
  over eight devices (fsdp=8), and as many such eights as there are, over slices too, share the
  batch. Where a device is short of memory, which 16 or more of 16 GiB are not:
  --config.parallel.accumulate=2, or more. On fewer devices than eight: --config.mesh.fsdp=-1.

Hardware, hours and accuracy of this project: not measured.
"""

from configs import common

EXAMPLES = 1_281_167 - 10_000  # the others are held out for validation


def get_config(argument: str | None = None) -> common.Config:
    """Returns the config of the argument's choices."""
    choice = common.parse(argument, variant=("deit_ti", "deit_s", "vit_b", "vit_l"))
    return _get_vit_l() if choice.variant == "vit_l" else _get_deit(choice.variant)


def _get_deit(variant: str) -> common.Config:
    batch_size = 1024
    steps_per_epoch = EXAMPLES // batch_size

    cfg = _get_run(variant, batch_size, epochs=300, drop_path=0.1)
    cfg.data.repeats_per_batch = 3

    cfg.optimizer.update(
        learning_rate=1e-3,
        warmup_steps=5 * steps_per_epoch,
        weight_decay=0.05,
        label_smoothing=0.1,
    )
    return cfg


def _get_vit_l() -> common.Config:
    batch_size = 4096
    steps_per_epoch = EXAMPLES // batch_size

    cfg = _get_run("vit_l", batch_size, epochs=200, drop_path=0.2)
    cfg.data.augment.erasing = 0.0

    cfg.optimizer.update(
        learning_rate=1e-4 * batch_size / 256,
        warmup_steps=20 * steps_per_epoch,
        weight_decay=0.3,
        b2=0.95,
        ema_decay=0.9999,
        label_smoothing=0.1,
    )
    cfg.mesh.fsdp = 8

    cfg.eval.batch_size = batch_size
    return cfg


def _get_run(variant: str, batch_size: int, epochs: int, drop_path: float) -> common.Config:
    """What the recipes share."""
    steps_per_epoch = EXAMPLES // batch_size

    cfg = common.get_run("images", train_steps=epochs * steps_per_epoch, batch_size=batch_size)
    cfg.data.update(name="imagenet2012", validation_examples=10_000, workers=16)
    cfg.data.augment = dict(crop_min_area=0.08, **common.DEIT_AUGMENT)
    cfg.model.update(preset=variant, drop_path=drop_path, dtype="bfloat16")
    cfg.depth.solver = "euler"

    cfg.checkpoint.every_steps = 5 * steps_per_epoch
    cfg.guard.sigmas = 10.0

    cfg.eval.every_steps = 5 * steps_per_epoch
    cfg.log.every_steps = 100
    return cfg
