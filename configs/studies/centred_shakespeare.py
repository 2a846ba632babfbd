"""Centred causal attention on tiny Shakespeare, at nanoGPT's budget for a CPU.

    python -m train.study --study=configs/studies/centred_shakespeare.py \\
        --study.config.data.data_dir=DIR --workdir=runs/studies/centred_shakespeare

configs/studies/centred.py for a language model of four and sixteen layers: a token's values are
centred by the mean over itself and those before it. Three seeds; 400 steps, then 800. 'Yes' is a
lower test loss with centring, as there; 'equivalent' within 0.01 nats. No effect is expected.

Source: arXiv 2306.01610. Not measured.
"""

from configs import common, shakespeare


def get_config() -> common.Config:
    """Returns the study."""
    config = shakespeare.get_config("size=cpu")
    config.train_steps = 400
    config.depth.solver = "euler"

    # Longer than any run: scored and saved at its end.
    config.eval.every_steps = 800
    config.checkpoint.update(every_steps=800, keep=1)
    config.log.every_steps = 50

    study = common.get_centred_study(config, layers=4)
    study.lengths = (400, 800)
    study.tune = dict(
        grid=dict(optimizer=dict(learning_rate=(1e-3, 3e-3))), steps=200, seeds=(900,)
    )
    study.margin = 0.01
    return study
