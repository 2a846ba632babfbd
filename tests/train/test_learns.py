"""A run of seconds learns: of the quick tests the one that trains."""

from tests.helpers.tiny import make_tiny
from train.loop import train


def test_a_tiny_run_learns_the_digits(tmp_path):
    """Chance is 10 %; the seeds 0 to 3 came to 69 to 73 % (26 November 2026)."""
    cfg = make_tiny()
    cfg.train_steps, cfg.batch_size = 100, 64
    cfg.model.update(width=32, mlp=64, dropout=0.0, drop_path=0.0)
    cfg.data.augment.update(shift_px=0.0, rotate_degrees=0.0, zoom=0.0)
    cfg.depth.update(layers=1, share=1, solver="euler")
    cfg.optimizer.update(learning_rate=1e-2, warmup_steps=10)
    cfg.checkpoint.every_steps = cfg.eval.every_steps = 100

    assert train(cfg, tmp_path)["test/accuracy"] > 0.6
