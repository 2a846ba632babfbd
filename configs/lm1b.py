"""The one-billion-word benchmark (Chelba et al. 2013, arXiv 1312.3005), with GPT-2's sizes.

    python -m train --config=configs/lm1b.py --config.data.data_dir=gs://bucket/tfds \\
        --workdir=gs://bucket/runs/lm1b

Sentences, packed into blocks in which none sees another; 32,768 byte-pair tokens, trained on the
training split and saved with the run. The set is read where tensorflow-datasets prepared it as
ArrayRecord files, whole, into memory. Hardware, hours and loss: not measured.
"""

from configs import common


def get_config() -> common.Config:
    """Returns the config."""
    cfg = common.get_run(train_steps=100_000, batch_size=256, task="language")
    cfg.data = common.get_documents("lm1b", tokenizer="bpe", held_out=0.001)
    cfg.model = common.get_lm(
        vocabulary=32_768, block_size=256, width=768, heads=12, mlp=3072, dtype="bfloat16"
    )
    cfg.depth = common.get_depth(layers=12)
    cfg.optimizer = common.get_optimizer(
        learning_rate=6e-4, warmup_steps=2000, weight_decay=0.1, b2=0.95, clip_norm=1.0
    )
    cfg.eval.update(every_steps=5000, batch_size=256)
    return cfg
