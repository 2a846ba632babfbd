"""The demo's promise, in full."""

import pytest

from configs import digits, digits_sequential
from train.loop import train


@pytest.mark.slow
@pytest.mark.parametrize("config", [digits, digits_sequential])
def test_digits_are_read(config, tmp_path):
    assert train(config.get_config(), tmp_path)["test/accuracy"] >= 0.975
