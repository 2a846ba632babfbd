"""The solvers on tiny Shakespeare, byte by byte, at nanoGPT's budget for a CPU.

    python -m train.study --study=configs/studies/shakespeare_cpu.py \\
        --study.config.data.data_dir=DIR --workdir=runs/studies/shakespeare

configs/shakespeare.py:size=cpu with a fifth of its steps, under five solvers, every layer with
weights of its own (share 1) or all with one set (share 4); over three seeds, which differ in their
first weights and in the order of the data. Paper: arXiv 2212.06011.
"""

from configs import common, shakespeare


def get_config() -> common.Config:
    """Returns the study."""
    config = shakespeare.get_config("size=cpu")
    config.train_steps = 400
    config.checkpoint.update(every_steps=400, keep=1)
    config.eval.every_steps = 400
    config.log.every_steps = 50

    solvers = ("lie_trotter", "euler", "strang", "midpoint", "rk4")
    return common.get_study(config, depth=dict(share=(1, 4), solver=solvers))
