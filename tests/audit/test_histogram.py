"""Is each value known within half a percent, however the values came in?"""

import math
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from invreg.audit.histogram import RELATIVE_ERROR, LogHistogram, quantile
from tests import oracle

TINIEST, LARGEST = 5e-324, sys.float_info.max

sizes = st.one_of(
    st.floats(0, LARGEST),  # of any size, subnormal ones too
    st.floats(-700, 700).map(math.exp),
    st.sampled_from([0.0, TINIEST, 2.2e-308, 1.0, LARGEST]),
)
values = st.lists(sizes, min_size=1, max_size=30)
shares = st.floats(0, 1)


def histogram_of(found) -> LogHistogram:
    histogram = LogHistogram()
    histogram.add(np.array(found, dtype=np.float64))
    return histogram


def assert_near(actual: float, expected: float) -> None:
    """Within half a percent and the rounding of logarithms as large as 700; subnormal numbers have steps."""
    assert abs(actual - expected) <= (RELATIVE_ERROR + 1e-12) * expected + TINIEST, (actual, expected)


def test_half_a_percent_is_what_is_promised():
    assert RELATIVE_ERROR == 0.005


@given(sizes)
def test_each_value_is_known_within_half_a_percent(value):
    (found,), (count,) = histogram_of([value]).values()
    assert_near(found, value)
    assert count == 1
    assert (found == 0) == (value == 0)


def test_half_a_percent_is_used_and_not_more_than_needed():
    """Some values are as far off as allowed: buckets are as wide as they may be."""
    found = [abs(histogram_of([v]).values()[0][0] / v - 1) for v in np.linspace(1, 1.02, 400)]
    assert 0.0049 < max(found) <= 0.005 + 1e-12


def test_values_closer_than_that_share_a_bucket_and_others_do_not():
    base = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
    assert len(histogram_of(base ** np.linspace(10.01, 10.99, 50)).counts) == 1
    assert len(histogram_of(base ** np.arange(-300.5, 300)).counts) == 601


@given(values, shares)
def test_quantiles_are_the_oracles_within_half_a_percent(found, share):
    assert_near(quantile(np.empty(0), histogram_of(found), share), oracle.quantile(found, share))


@given(values, shares)
def test_quantiles_of_kept_values_are_exact(found, share):
    assert quantile(np.array(found), LogHistogram(), share) == oracle.quantile(found, share)


@given(values, values, shares)
def test_quantiles_of_values_kept_and_not_are_within_half_a_percent(kept, others, share):
    assert_near(quantile(np.array(kept), histogram_of(others), share), oracle.quantile(kept + others, share))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300))
def test_at_each_share_of_the_form_k_in_n_it_is_the_kth(found):
    for k in range(1, len(found) + 1):
        assert quantile(np.array(found), LogHistogram(), k / len(found)) == sorted(found)[k - 1]


@given(values, st.lists(st.integers(0, 30), max_size=3))
def test_neither_batches_nor_merging_matter(found, cuts):
    together = histogram_of(found)
    edges = [0, *sorted(cuts), len(found)]
    batched, merged = LogHistogram(), LogHistogram()
    for start, stop in pairwise(edges):
        batched.add(np.array(found[start:stop], dtype=np.float64))
        merged.merge(histogram_of(found[start:stop]))
    assert batched == merged == together
    assert sum(together.counts.values()) == len(found)


@given(st.permutations(list(range(12))))
def test_order_does_not_matter(order):
    found = np.array([0.0, TINIEST, 1e-9, 0.5, 0.5, 1.0, 1.001, 7.0, 1e9, 1e300, LARGEST, 0.0])
    assert histogram_of(found[order]) == histogram_of(found)


def test_merging_leaves_the_other_one_alone():
    one, two = histogram_of([1.0]), histogram_of([1.0, 50.0])
    one.merge(two)
    assert two == histogram_of([1.0, 50.0])
    assert one == histogram_of([1.0, 1.0, 50.0])
    one.add(np.array([3.0]))
    assert two == histogram_of([1.0, 50.0])


def test_values_come_in_ascending_order_with_their_counts():
    found, counts = histogram_of([5.0, 0.0, 1e-300, 5.0, 0.0, 1e300, 5.0]).values()
    assert (np.diff(found) > 0).all()
    assert counts.tolist() == [2, 1, 3, 1]
    assert found[0] == 0


def test_counts_that_were_given_are_not_shared():
    counts = {3: 1}
    histogram = LogHistogram(counts)
    histogram.add(np.array([1.0]))
    assert counts == {3: 1}


def test_histograms_are_equal_by_value():
    assert histogram_of([1.0, 2.0]) == histogram_of([2.0, 1.0])
    assert histogram_of([1.0]) != histogram_of([1.0, 1.0])
    assert histogram_of([1.0]) != {0: 1}
    with pytest.raises(TypeError, match="unhashable"):
        hash(LogHistogram())


def test_adding_nothing_adds_nothing():
    histogram = histogram_of([2.0])
    histogram.add(np.empty(0))
    assert histogram == histogram_of([2.0])
    assert LogHistogram().values()[0].shape == (0,)


def test_memory_does_not_grow_with_the_values():
    histogram = LogHistogram()
    for seed in range(20):
        histogram.add(np.random.default_rng(seed).lognormal(0, 2, 20_000))
    assert sum(histogram.counts.values()) == 400_000
    assert len(histogram.counts) < 2_500


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_of_many_values_numpy_says_the_same(share):
    found = np.random.default_rng(0).lognormal(0, 3, 10_000)
    expected = np.quantile(found, share, method="inverted_cdf")
    assert quantile(found, LogHistogram(), share) == expected
    assert_near(quantile(found[:3000], histogram_of(found[3000:]), share), expected)
