"""The one-billion-word benchmark (Chelba et al. 2013, arXiv 1312.3005), on one host or a TPU pod.

    python -m train --config=configs/lm1b.py --config.data.data_dir=gs://bucket/tfds \\
        --workdir=gs://bucket/runs/lm1b
    python -m train.aot --config=configs/lm1b.py:variant=gpt_1b --topology=v5e:16x16

Sentences, packed into blocks in which none sees another; 32,768 byte-pair tokens, trained on the
training split and saved with the run. The set is read where tensorflow-datasets prepared it as
ArrayRecord files, whole, into memory. The argument: variant=gpt_small|gpt_1b.

- gpt_small: the sizes of GPT-2's smallest, blocks of 256. The mesh: every device holds the whole
  state (data=-1).
- gpt_1b: GPT-3 XL (Brown et al. 2020, arXiv 2005.14165) with 16 heads of 128, 1,275,711,488
  parameters; 512 blocks of 1,024 a step, warm-up over 375 million tokens, and 26 billion tokens in
  all, 20 a parameter (Hoffmann et al. 2022, arXiv 2203.15556). That is many times this set's 0.8
  billion words: take a larger one by --config.data.name=files --config.data.files=.... The mesh:
  the state is split over sixteen devices (fsdp=16), and as many such sixteens as there are, over
  slices too, share the batch. Where a device is short of memory: --config.parallel.accumulate=4,
  say. On fewer devices than sixteen: --config.mesh.fsdp=-1.

Hardware, hours and loss: not measured.
"""

from configs import common


def get_config(argument: str | None = None) -> common.Config:
    """Returns the config of the argument's size."""
    choice = common.parse(argument, variant=("gpt_small", "gpt_1b"))
    return _get_small() if choice.variant == "gpt_small" else _get_1b()


def _get_small() -> common.Config:
    cfg = _get_run(train_steps=100_000, batch_size=256)
    cfg.model.update(
        preset="gpt_small", vocabulary=32_768, block_size=256, positions="rotary", dtype="bfloat16"
    )

    cfg.optimizer.update(learning_rate=6e-4, warmup_steps=2000)
    cfg.eval.update(every_steps=5000, batch_size=256)
    return cfg


def _get_1b() -> common.Config:
    batch_size, block_size = 512, 1024

    cfg = _get_run(train_steps=50_000, batch_size=batch_size)
    cfg.model.update(preset="gpt_1b", block_size=block_size, dtype="bfloat16")

    cfg.optimizer.update(learning_rate=2e-4, warmup_steps=375_000_000 // (batch_size * block_size))
    cfg.mesh.fsdp = 16

    cfg.checkpoint.every_steps = 1000
    cfg.guard.sigmas = 10.0
    cfg.eval.update(every_steps=1000, batch_size=batch_size)
    cfg.log.every_steps = 100
    return cfg


def _get_run(train_steps: int, batch_size: int) -> common.Config:
    """What the sizes share."""
    cfg = common.get_run("language", train_steps=train_steps, batch_size=batch_size)
    cfg.data.update(name="lm1b", tokenizer="bpe", held_out_fraction=0.001)
    cfg.optimizer.update(weight_decay=0.1, b2=0.95, clip_norm=1.0)
    return cfg
