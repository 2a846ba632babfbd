"""Your own texts: a byte model of a file, a folder or a pattern, and nothing else.

    python -m train --config=configs/texts.py --config.data.files=texts --workdir=runs/texts
    python -m train.generate --workdir=runs/texts --prompt="Once"

The length of the blocks, batch size, steps and warm-up follow from how much text there is, and are
printed; each is a key that can be given instead, e.g. --config.model.block_size=256.

Four parallel layers of width 128. Hardware: a CPU for small texts; time and loss: those of your
texts, not measured.
"""

from configs import common


def get_config() -> common.Config:
    """Returns the config."""
    cfg = common.get_run("language")
    cfg.data.update(name="files", held_out_fraction=0.1)
    cfg.model.update(width=128, heads=4, mlp=512, dropout=0.1)
    cfg.depth.update(layers=4, adjoint="store")

    cfg.optimizer.update(
        learning_rate=2e-3, weight_decay=0.1, b2=0.99, clip_norm=1.0, ema_decay=0.99
    )
    cfg.eval.batch_size = 128
    return cfg
