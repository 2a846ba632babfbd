"""Regularised flows on handwritten digits, by five-fold cross-validation on a CPU.

    python -m train.study --study=configs/studies/regularise.py --workdir=runs/studies/regularise

A flow of width 32 over two layers of one set of weights, in two steps of Heun's method: plain; with
its kinetic energy in the loss; with the solver's own error estimates; with a random end; and with
all three. 200 images lie outside of every fold: by them each row's learning rate is chosen. The
others are tested once each.

What would count as 'yes', written before the first run: of the four contrasts below, a test
accuracy that is lower with regularising, after 400 steps and after 800, at a p-value below 0.05,
corrected by Holm: it costs accuracy. 'Equivalent': the 90 % interval lies within 1.5 points. What
it buys is measured on the finished runs of 800 steps, each by

    python -m train.evaluate --workdir=RUN --config.depth.rtol=1e-2 --config.depth.per_sample=True

Fewer evaluations per test image (NFE) than the plain runs, in a paired t-test over the five folds,
each the mean of its seeds, at a p-value below 0.05, corrected by Holm for four rows. A row that
costs accuracy buys nothing.

Sources: arXiv 2002.02798 (kinetic energy), 2105.03918 (error estimate), 2006.10711 (random end).
Not measured.
"""

from configs import common

COSTS = "regularising the flow costs accuracy"
KINETIC, ERROR, END_TIME = 0.01, 1.0, 1.0


def get_config() -> common.Config:
    """Returns the study."""
    config = common.get_small_digits(layers=2, share=2, solver="heun")

    options = (
        dict(kinetic=(0.0, KINETIC)),
        dict(error=(ERROR,)),
        dict(end_time=(END_TIME,)),
        dict(kinetic=(KINETIC,), error=(ERROR,), end_time=(END_TIME,)),
    )
    study = common.get_folds_study(config)
    study.grid = [dict(regularise=each) for each in options]

    flow = "heun, share 2"
    rows = (
        f"kinetic {KINETIC}",
        f"error {ERROR}",
        f"end_time {END_TIME}",
        f"kinetic {KINETIC}, error {ERROR}, end_time {END_TIME}",
    )
    study.contrasts = tuple(
        (COSTS, f"{flow}, {row}", f"{flow}, kinetic 0.0", "worse") for row in rows
    )
    return study
