"""A byte model of Python's own help texts, which ship with it: nothing is downloaded.

    python -m train --config=configs/pydocs.py --workdir=runs/pydocs
    python -m train.generate --workdir=runs/pydocs --prompt="The with statement"

Hardware: one shared CPU core, a quarter of an hour. Test loss: 1.421 nats per byte (21 November
2026). 79 documents, 465,000 characters (they differ a little between versions of Python), packed
into blocks in which no document sees another.
"""

from configs import common


def get_config() -> common.Config:
    """Returns the config."""
    cfg = common.get_run("language", train_steps=1000, batch_size=16)
    cfg.data.name = "pydocs"
    cfg.model.update(block_size=128, width=128, heads=4, mlp=512)
    cfg.depth.update(layers=4, adjoint="store")

    cfg.optimizer.update(
        learning_rate=4e-3, warmup_steps=100, weight_decay=0.1, b2=0.99, clip_norm=1.0
    )

    cfg.eval.update(every_steps=500, batch_size=128)
    return cfg
