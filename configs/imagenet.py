"""ImageNet-1k (Russakovsky et al. 2015) from scratch, by the DeiT recipe at 224 pixels.

    python -m train --config=configs/imagenet.py:variant=deit_s \\
        --config.data.data_dir=gs://bucket/tfds --workdir=gs://bucket/runs/imagenet_deit_s

The argument: variant=deit_ti|deit_s|vit_b. imagenet2012 is read from data_dir, where
tensorflow-datasets has prepared it (file format array_record): that takes the official archives and
an installation of TensorFlow, once.

Paper: Touvron et al. 2021, arXiv 2012.12877: 300 epochs, repeated augmentation, batch 1024.
Published test accuracy of the sequential models: deit_ti 72.2 %, deit_s 79.8 %, vit_b 81.8 %.
Hardware, hours and accuracy of this project: not measured.
"""

from configs import common

EXAMPLES = 1_281_167 - 10_000  # the others are held out for validation


def get_config(argument: str | None = None) -> common.Config:
    """Returns the config of the argument's choices."""
    choice = common.parse(argument, variant=("deit_ti", "deit_s", "vit_b"))
    batch_size, epochs = 1024, 300
    steps_per_epoch = EXAMPLES // batch_size
    cfg = common.get_run(train_steps=epochs * steps_per_epoch, batch_size=batch_size)
    cfg.data = common.get_data("imagenet2012", crop_min_area=0.08, **common.DEIT_AUGMENT)
    cfg.data.update(validation=10_000, repeats=3, workers=16)
    cfg.model = common.get_model(
        choice.variant,
        image_size=224,
        patch_size=16,
        classes=1000,
        drop_path=0.1,
        dtype="bfloat16",
    )
    cfg.depth = common.get_depth(layers=12, solver="euler")
    cfg.optimizer = common.get_optimizer(
        learning_rate=1e-3,
        warmup_steps=5 * steps_per_epoch,
        weight_decay=0.05,
        label_smoothing=0.1,
    )
    cfg.checkpoint.every_steps = 5 * steps_per_epoch
    cfg.eval.every_steps = 5 * steps_per_epoch
    cfg.log.every_steps = 100
    return cfg
