"""Your own images: a folder with a folder of images per class, and nothing else.

    python -m train --config=configs/folder.py --config.data.files=photos --workdir=runs/photos
    python -m train.evaluate --workdir=runs/photos --confusion
    python -m train.predict --workdir=runs/photos picture.jpg

The size and channels of the images, their patches, the classes, the parts held out to validate and
to test on, batch size, steps and warm-up follow from what the folder holds, and are printed; each
is a key that can be given instead, e.g. --config.model.image_size=128 --config.model.patch_size=16.
Folders train/, val/ and test/, each with a folder per class, are taken as they stand, and so is a
CSV of 'file' and 'label'.

Four parallel layers of width 128. Hardware: a CPU for small sets; time and accuracy: those of your
images, not measured.
"""

from configs import common


def get_config() -> common.Config:
    """Returns the config."""
    cfg = common.get_run("images")
    cfg.data.name = "folder"
    cfg.data.augment = dict(flip=True, shift_px=2.0, rotate_degrees=10.0, zoom=0.1)

    cfg.model.update(width=128, heads=4, mlp=256, drop_path=0.1)
    cfg.depth.update(layers=4, solver="euler")
    cfg.optimizer.update(learning_rate=1e-3, clip_norm=1.0, ema_decay=0.99, label_smoothing=0.1)

    cfg.eval.batch_size = 256
    return cfg
