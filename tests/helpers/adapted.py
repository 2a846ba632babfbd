"""The config of a run that trains low-rank adapters."""

from tests.helpers.tiny import make_tiny

LORA = dict(rank=4, alpha=8.0, targets=("qkv", "mlp_layer"))


def make_adapted(base=None, **options):
    """Returns a tiny config, which trains adapters of a base if there is one."""
    cfg = make_tiny()
    cfg.depth.update(layers=2, share=1, solver="euler")
    cfg.model.update(dropout=0.0, drop_path=0.0)
    cfg.data.augment.update(shift_px=0.0, rotate_degrees=0.0, zoom=0.0)
    if base is not None:
        cfg.init.path = str(base)
        cfg.lora = LORA | options
    return cfg
