"""The solvers on the sentiment of sentences (SST-2), from scratch on a CPU.

    python -m train.study --study=configs/studies/sst2.py --workdir=runs/studies/sst2 \\
        --study.config.data.data_dir=DIR

configs/sst2.py with three quarters of its steps, under five solvers, every layer with weights of
its own (share 1) or all with one set; over three seeds. Paper: arXiv 2212.06011.
"""

import ml_collections

from configs import common, sst2


def get_config() -> common.Config:
    """Returns the study."""
    study: common.Config = ml_collections.ConfigDict()
    study.config = sst2.get_config()
    study.config.train_steps = 240
    layers = study.config.depth.layers
    study.config.checkpoint.update(every_steps=study.config.train_steps, keep=1)
    study.config.eval.every_steps = study.config.train_steps
    study.config.log.every_steps = 50
    study.grid = dict(
        depth=dict(share=(1, layers), solver=("lie_trotter", "euler", "strang", "midpoint", "rk4"))
    )
    study.matched = None
    study.folds = None
    study.seeds = (0, 1, 2)
    return study
