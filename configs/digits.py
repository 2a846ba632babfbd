"""An ODE vision transformer on 8x8 handwritten digits: one block of weights, integrated by RK4.

python -m train --config=configs/digits.py --workdir=runs/digits
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    cfg = ml_collections.ConfigDict()
    cfg.seed = 0
    cfg.train_steps = 1800
    cfg.batch_size = 64
    cfg.data = dict(name="digits", augment=dict(shift_px=0.5, rotate_degrees=10.0, zoom=0.1))
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
    cfg.depth = common.get_depth(layers=2, share=2, solver="rk4")
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
    cfg.checkpoint = dict(every_steps=500, keep=2)
    cfg.eval = dict(every_steps=300, batch_size=360)
    cfg.log = dict(every_steps=100)
    return cfg
