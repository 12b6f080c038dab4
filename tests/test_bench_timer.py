"""Statistics of samples."""

import random

import numpy as np
import pytest

from tritonbn_bench.timer import Samples, percentile


@pytest.mark.parametrize("count", [1, 2, 19, 100])
@pytest.mark.parametrize("share", [0, 20, 50, 80, 100])
def test_percentiles_are_those_of_numpy(count: int, share: int) -> None:
    values = [random.Random(count).gauss(0, 1) for _ in range(count)]
    assert percentile(values, share) == pytest.approx(np.percentile(values, share), abs=1e-12)


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="expected values"):
        percentile([], 50)
    with pytest.raises(ValueError, match="share of 0 to 100"):
        percentile([1.0], 101)


def test_one_outlier_moves_neither_median_nor_band() -> None:
    quiet = Samples(tuple([1.0] * 20), 1.0, "fake")
    disturbed = Samples((*[1.0] * 19, 50.0), 1.0, "fake")
    assert (disturbed.low, disturbed.median, disturbed.high) == (quiet.low, quiet.median, 1.0)
