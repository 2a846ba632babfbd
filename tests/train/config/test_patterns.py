"""Parameters by name: what a pattern matches, and what is refused."""

import pytest

from tests.helpers.tiny import make_tiny
from train.checkpoint.initial_checks import check_optimizer_names
from train.config.border import from_config_dict
from train.config.patterns import factor_of, factors, matches
from train.errors import BadInput

NAMES = [
    "class_token",
    "depth/groups/mlp_layer/up/bias",
    "depth/groups/mlp_layer/up/kernel",
    "depth/groups/mlp_norm/bias",
    "head/bias",
    "head/kernel",
]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("head", [4, 5]),
        ("head/kernel", [5]),
        ("hea", []),
        ("kernel", []),
        ("**/kernel", [2, 5]),
        ("**/bias", [1, 3, 4]),
        ("*/kernel", [5]),
        ("*", [0, 1, 2, 3, 4, 5]),
        ("**", [0, 1, 2, 3, 4, 5]),
        ("*token", [0]),
        ("depth", [1, 2, 3]),
        ("depth/**/bias", [1, 3]),
        ("depth/*/mlp_*/bias", [3]),
        ("depth/groups/mlp_*", [1, 2, 3]),
        ("head/kernel/more", []),
        ("[ch]*", [0, 4, 5]),
        ("**/up/**/kernel", [2]),
    ],
)
def test_patterns(pattern, found):
    assert [name for name in NAMES if matches(name, pattern)] == [NAMES[i] for i in found]


def test_the_last_factor_that_matches_counts():
    by_pattern = factors(["**/bias=2", "head=10", "head/bias=0.5"])
    found = [factor_of(name, by_pattern) for name in NAMES]
    assert found == [1.0, 2.0, 1.0, 2.0, 0.5, 10.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimizer.freeze": ["haed"]},
            r"freeze: 'haed' matches no parameter: there are depth/gr",
        ),
        (
            {"optimizer.freeze": ["*"]},
            r"freeze=\['\*'\] leaves nothing to train: all 19 parameters",
        ),
        ({"optimizer.rate_factors": ["kernel=2"]}, "rate_factors: 'kernel' matches no parameter"),
        (
            {"optimizer.rate_factors": ["head=2"], "optimizer.freeze": ["head"]},
            "rate_factors: 'head' matches no parameter trained: there are depth/groups/attention",
        ),
        ({"optimizer.rate_factors": ["head"]}, r"a list of PATTERN=FACTOR.*\('head',\) was given"),
        ({"optimizer.rate_factors": ["head=0"]}, "with factors above 0"),
        ({"optimizer.rate_factors": ["head=nan"]}, "with factors above 0"),
        ({"optimizer.rate_factors": ["=2"]}, "with factors above 0"),
        ({"optimizer.freeze": ["a//b"]}, "optimizer.freeze is a list of names or patterns"),
        ({"optimizer.layer_decay": 0.01, "depth.layers": 40}, "layer_decay=0.01 over 40 layers is"),
        ({"init.include": ["head"]}, "config.init.include has no effect without config.init.path"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(BadInput, match=message):
        check_optimizer_names(from_config_dict(make_tiny(), changes))
