"""What the configs share."""

from typing import Any

import ml_collections
from ml_collections import config_dict


def get_depth(**changes: Any) -> ml_collections.ConfigDict:
    """Returns the keys of `depth`; None where the library's default or nothing applies."""
    depth = ml_collections.ConfigDict(
        dict(
            layers=12,
            share=1,
            solver="euler",
            steps=config_dict.placeholder(int),
            rtol=config_dict.placeholder(float),
            atol=config_dict.placeholder(float),
            max_steps=config_dict.placeholder(int),
            per_sample=False,
            adjoint="checkpoint",
            policy=config_dict.placeholder(str),
        )
    )
    depth.update(changes)
    return depth


def get_augment(**changes: Any) -> ml_collections.ConfigDict:
    """Returns the keys of `data.augment`: all off but the changes."""
    augment = ml_collections.ConfigDict(
        dict(
            shift_px=0.0,
            rotate_degrees=0.0,
            zoom=0.0,
            crop_padding_px=0,
            crop_min_area=0.0,
            flip=False,
            randaugment_ops=0,
            randaugment_magnitude=9.0,
            erasing=0.0,
            mixup=0.0,
            cutmix=0.0,
        )
    )
    augment.update(changes)
    return augment


def get_data(name: str, **augment: Any) -> ml_collections.ConfigDict:
    """Returns the keys of `data` for the set of that name, with that augmentation."""
    return ml_collections.ConfigDict(
        dict(
            name=name,
            data_dir=config_dict.placeholder(str),
            fold=config_dict.placeholder(int),
            validation=0,
            repeats=1,
            workers=0,
            skip_corrupt=False,
            augment=get_augment(**augment),
        )
    )


def get_digits(**depth: Any) -> ml_collections.ConfigDict:
    """Returns a run on scikit-learn's 8x8 digits, of that depth.

    Augmentation, learning rate, steps and sizes were chosen by the validation split alone.
    """
    cfg = ml_collections.ConfigDict()
    cfg.seed = 0
    cfg.train_steps = 1800
    cfg.batch_size = 64
    cfg.data = get_data("digits", shift_px=0.5, rotate_degrees=10.0, zoom=0.1)
    cfg.model = dict(
        image_size=8,
        patch_size=2,
        channels=1,
        classes=10,
        width=64,
        heads=4,
        mlp=128,
        dropout=0.0,
        drop_path=0.0,
        dtype="float32",
        pool="mean",
        positions="learned",
        time="none",
        fused=False,
        attention="auto",
    )
    cfg.depth = get_depth(**depth)
    cfg.optimizer = dict(
        learning_rate=3e-3,
        warmup_steps=100,
        weight_decay=0.05,
        b1=0.9,
        b2=0.99,
        clip_norm=1.0,
        ema_decay=0.99,
        label_smoothing=0.0,
    )
    cfg.mesh = dict(data=-1)
    cfg.checkpoint = dict(every_steps=600, keep=2)
    cfg.eval = dict(every_steps=300, batch_size=360)
    cfg.log = dict(every_steps=100)
    return cfg
