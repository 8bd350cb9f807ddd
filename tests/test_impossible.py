"""A printed number is called impossible only if nothing that rounds to it is possible."""

import math

import numpy as np
import pytest

from grokutils.paper.judge import impossible
from grokutils.paper.judge.published import TABLE_1, TABLE_1_ARXIV


def test_one_is_possible_after_rounding_and_nine_tenths_is_not():
    one, nine_tenths = (table["fc1"]["anti-grokking"] for table in (TABLE_1, TABLE_1_ARXIV))
    assert impossible.excess_over_smallest_alpha(one)({}).value < 0
    assert impossible.excess_after_rounding(one)({}).value == pytest.approx(1.05 - impossible.smallest_alpha())
    assert impossible.excess_after_rounding(nine_tenths)({}).value < 0
    assert impossible.excess_after_rounding("1.00")({}).value == pytest.approx(1.005 - impossible.smallest_alpha())
    assert impossible.networks_for_spread(nine_tenths, "0.40")({}).value == math.inf


def test_so_many_networks_have_the_spread_and_one_fewer_has_not():
    n = int(impossible.networks_for_spread("1.0", "0.40")({}).value)
    low = impossible.smallest_alpha()
    for count, enough in ((n, True), (n - 1, False)):
        alphas = np.full(count, low)
        alphas[0] += count * (1.05 - low)  # the widest spread of this mean: all others are as low as can be
        assert alphas.mean() == pytest.approx(1.05)
        assert (alphas.std(ddof=1) >= 0.395) == enough
