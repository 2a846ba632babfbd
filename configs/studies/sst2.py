"""The solvers on the sentiment of sentences (SST-2), from scratch on a CPU.

    python -m train.study --study=configs/studies/sst2.py --workdir=runs/studies/sst2 \\
        --study.config.data.data_dir=DIR

configs/sst2.py with three quarters of its steps, under five solvers, every layer with weights of
its own (share 1) or all with one set; over three seeds. Paper: arXiv 2212.06011.
"""

from configs import common, sst2


def get_config() -> common.Config:
    """Returns the study."""
    config = sst2.get_config()
    config.train_steps = 240
    config.checkpoint.update(every_steps=240, keep=1)
    config.eval.every_steps = 240
    config.log.every_steps = 50

    solvers = ("lie_trotter", "euler", "strang", "midpoint", "rk4")
    return common.get_study(config, depth=dict(share=(1, config.depth.layers), solver=solvers))
