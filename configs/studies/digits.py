"""The paper's claims on handwritten digits, by five-fold cross-validation on a CPU.

    python -m train.study --study=configs/studies/digits.py --workdir=runs/studies/digits

Six layers of width 32 under five solvers, every layer with weights of its own (share 1) or all
with one set (share 6), and sequential and parallel models of the FLOPs of the RK4 ones. Each fold
trains from the start on four fifths and is tested on the fifth: each of the 1,797 images is tested
once.
Paper: arXiv 2212.06011.
"""

from configs import common


def get_config() -> common.Config:
    """Returns the study."""
    config = common.get_digits(layers=6)
    config.train_steps = 800
    config.model.update(width=32, heads=2, mlp=64)
    config.checkpoint.update(every_steps=800, keep=1)
    config.eval.every_steps = 800
    config.log.every_steps = 50

    solvers = ("lie_trotter", "euler", "strang", "midpoint", "rk4")
    study = common.get_study(config, depth=dict(share=(1, 6), solver=solvers))
    study.matched = dict(row="rk4", by="flops", solvers=("lie_trotter", "euler"))
    study.folds = 5
    study.seeds = (0,)
    return study
