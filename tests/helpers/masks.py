"""What dropout does to the tokens that a model embeds."""

import jax
import numpy as np


def check_embedded_tokens_are_dropped(model, variables, inputs, rates):
    """Each entry of the first state is what it is in evaluation, or 0 and twice as large."""
    run = lambda **options: model.apply(variables, inputs, mutable=["states"], **options)[1]
    plain, dropped = (
        np.asarray(run(**options)["states"]["depth"]["y"][0])
        for options in ({}, dict(train=True, rngs={"dropout": jax.random.key(0)}))
    )
    if "dropout" in rates:
        kept = dropped != 0
        np.testing.assert_array_equal(dropped, np.where(kept, 2 * plain, 0))
        assert 0.4 < kept.mean() < 0.6
    else:
        np.testing.assert_array_equal(dropped, plain)
