"""Your own labelled texts: a folder with a folder of files per class, and nothing else.

    python -m train --config=configs/labelled_texts.py --config.data.files=reviews \\
        --workdir=runs/reviews
    python -m train.evaluate --workdir=runs/reviews --confusion
    python -m train.predict --workdir=runs/reviews new.txt    # a text per line

The classes, the vocabulary of byte pairs, the length of the blocks, batch size, steps and warm-up
follow from what the folder holds, and are printed; each is a key that can be given instead, e.g.
--config.model.block_size=512. Folders train/, val/ and test/, each with a folder per class, are
taken as they stand, and so is a CSV of 'text' and 'label'.

Two parallel layers of width 64, as in configs/sst2.py. Hardware: a CPU for small sets; time and
accuracy: those of your texts, not measured.
"""

from configs import common


def get_config() -> common.Config:
    """Returns the config."""
    cfg = common.get_run("sentences")
    cfg.data.update(name="folder", held_out_fraction=0.15, token_dropout=0.3)
    cfg.model.update(width=64, heads=4, mlp=128, dropout=0.5)
    cfg.depth.update(layers=2, solver="euler", adjoint="store")

    cfg.optimizer.update(
        learning_rate=1e-3, weight_decay=0.1, clip_norm=1.0, ema_decay=0.99, label_smoothing=0.1
    )
    cfg.eval.batch_size = 256
    return cfg
