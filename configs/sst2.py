"""The sentiment of film reviews' sentences (SST-2, Socher et al. 2013), from scratch on a CPU.

    python -m train --config=configs/sst2.py --config.data.data_dir=DIR --workdir=runs/sst2

The steps suit the 6,920 whole sentences of the training split: test accuracy 78.4, 78.9 and 78.0 %
(seeds 0, 1, 2; 21 November 2026, 3 minutes on one shared CPU core). tensorflow-datasets' glue/sst2
has their phrases too, 67,349 texts, for which --config.train_steps=3000 is nearer; not measured.
Another set of texts and labels by --config.data.name=... (imdb_reviews needs a larger
--config.model.block_size, too).
"""

from configs import common


def get_config() -> common.Config:
    """Returns the config."""
    cfg = common.get_run("sentences", train_steps=320, batch_size=64)
    cfg.data.update(name="glue/sst2", token_dropout=0.3)
    cfg.model.update(vocabulary=16_000, block_size=48, width=64, heads=4, mlp=128, dropout=0.5)
    cfg.depth.update(layers=2, adjoint="store")

    cfg.optimizer.update(
        learning_rate=1e-3,
        warmup_steps=100,
        weight_decay=0.1,
        clip_norm=1.0,
        ema_decay=0.99,
        label_smoothing=0.1,
    )

    cfg.eval.update(every_steps=80, batch_size=256)
    return cfg
