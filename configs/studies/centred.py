"""Centred attention on handwritten digits, by five-fold cross-validation on a CPU.

    python -m train.study --study=configs/studies/centred.py --workdir=runs/studies/centred

Rows of attention weights sum to 1, so that tokens are drawn to their mean, the more so the longer
the flow; centred, they sum to 0. The parallel layer (Euler) at width 32, plain and centred: six
layers; 24 layers of their own; 24 layers of one set; and the six layers of one set in 24 quarter
steps. 200 images lie outside of every fold: by them each row's learning rate is chosen.

What would count as 'yes', written before the first run: of the four contrasts below, a test
accuracy that is higher with centring, after 400 steps and after 800, at a p-value below 0.05,
corrected by Holm. 'Equivalent': the 90 % interval lies within 1.5 points.

Source: arXiv 2306.01610. 160 runs and 16 trials: 26 ms of a CPU core per step of a row on
average, so about 45 minutes on 2 quiet cores. Results so far: docs/studies.md.
"""

from configs import common


def get_config() -> common.Config:
    """Returns the study."""
    config = common.get_small_digits(solver="euler")

    study = common.get_centred_study(config, layers=6)
    common.repeat_over_folds(study)
    return study
