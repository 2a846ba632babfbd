"""Configs of runs that take seconds."""

from configs import digits, pydocs, sst2
from tests.helpers.checkout import ROOT


def make_tiny():
    """Returns the digits config, shrunk to a run of seconds; dropout and drop-path act."""
    cfg = digits.get_config()
    cfg.train_steps, cfg.batch_size = 6, 32
    cfg.model.update(width=16, heads=2, mlp=32, dropout=0.1, drop_path=0.1)
    cfg.optimizer.warmup_steps = 2
    cfg.checkpoint.update(every_steps=3, keep=2)
    cfg.eval.update(every_steps=3, batch_size=128)
    cfg.log.every_steps = 1
    return cfg


def make_tiny_language():
    """Returns a language run of seconds on the licence's text, over byte-pair tokens."""
    cfg = pydocs.get_config()
    cfg.train_steps, cfg.batch_size = 6, 8
    cfg.data.update(name="files", files=str(ROOT / "LICENSE"), tokenizer="bpe")
    cfg.data.held_out_fraction = 0.1
    cfg.model.update(vocabulary=300, block_size=32, width=16, heads=2, mlp=32, dropout=0.1)
    cfg.depth.update(layers=2, share=2, solver="heun")
    cfg.optimizer.update(warmup_steps=2, ema_decay=0.9)
    cfg.checkpoint.update(every_steps=3, keep=2)
    cfg.eval.update(every_steps=3, batch_size=128)
    cfg.log.every_steps = 1
    return cfg


def make_tiny_sentences(data_dir):
    """Returns a classifier's run of seconds on the set of `opinions_dir`."""
    cfg = sst2.get_config()
    cfg.train_steps, cfg.batch_size = 6, 8
    cfg.data.update(name="opinions", data_dir=str(data_dir), held_out_fraction=0.2)
    cfg.model.update(vocabulary=280, block_size=12, width=16, heads=2, mlp=32)
    cfg.optimizer.update(warmup_steps=2)
    cfg.checkpoint.update(every_steps=3, keep=2)
    cfg.eval.update(every_steps=3, batch_size=128)
    cfg.log.every_steps = 1
    return cfg
