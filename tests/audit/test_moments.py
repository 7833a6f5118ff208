"""Are means and standard errors those of all the values, however they came in?"""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from invreg.audit.moments import Moments
from tests import oracle

values_in_bins = st.lists(st.tuples(st.floats(-1e3, 1e3), st.integers(0, 2)), min_size=1, max_size=30)


def collected(pairs: list[tuple[float, int]], bins: int = 3) -> Moments:
    moments = Moments(bins)
    if pairs:
        moments.add(np.array([value for value, _ in pairs]), np.array([index for _, index in pairs]))
    return moments


def assert_same(actual, expected, tolerance: float = 1e-9) -> None:
    assert (actual is None) == (expected is None)
    if actual is None:
        return
    assert actual.count == expected.count
    assert actual.mean == pytest.approx(expected.mean, rel=tolerance, abs=tolerance)
    assert (actual.standard_error is None) == (expected.standard_error is None)
    if actual.standard_error is not None:
        assert actual.standard_error == pytest.approx(expected.standard_error, rel=tolerance, abs=tolerance)


@given(values_in_bins)
def test_each_bin_agrees_with_the_oracle(pairs):
    moments = collected(pairs)
    for index in range(3):
        values = [value for value, where in pairs if where == index]
        expected = oracle.estimate(values) if values else None
        assert_same(moments.estimate(index), expected)


@given(values_in_bins, st.lists(st.integers(0, 30), max_size=4))
def test_any_partition_gives_the_same(pairs, cuts):
    edges = [0, *sorted(cuts), len(pairs)]
    streamed = Moments(3)
    for start, stop in pairwise(edges):
        streamed.merge(collected(pairs[start:stop]))
    for index in range(3):
        assert_same(streamed.estimate(index), collected(pairs).estimate(index), 1e-10)


@given(values_in_bins, values_in_bins)
def test_merging_does_not_depend_on_who_merges_whom(first, second):
    one, two = collected(first), collected(second)
    one.merge(collected(second))
    two.merge(collected(first))
    for index in range(3):
        assert_same(one.estimate(index), two.estimate(index), 1e-10)


def test_merging_leaves_the_other_one_alone():
    one, two = collected([(1.0, 0)]), collected([(3.0, 0), (5.0, 1)])
    before = two.estimate(0)
    one.merge(two)
    assert_same(two.estimate(0), before)
    assert_same(one.estimate(0), oracle.Mean(2.0, 1.0, 2))


def test_adding_one_value_at_a_time_equals_one_pass():
    values = np.random.default_rng(0).normal(size=200)
    streamed = Moments(1)
    for value in values:
        streamed.add(np.array([value]), np.array([0]))
    assert_same(streamed.estimate(), oracle.estimate(values.tolist()), 1e-12)


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_a_large_mean_does_not_drown_the_deviation(batch):
    values = 1e8 + np.random.default_rng(0).normal(size=1000)
    streamed = Moments(1)
    for start in range(0, 1000, batch):
        part = values[start : start + batch]
        streamed.add(part, np.zeros(len(part), dtype=np.int64))
    expected = oracle.estimate(values.tolist())
    assert streamed.estimate().standard_error == pytest.approx(expected.standard_error, rel=1e-6)
    naive = math.sqrt(max(np.mean(values**2) - np.mean(values) ** 2, 0) / 999)
    assert naive != pytest.approx(expected.standard_error, rel=1e-2)


def test_one_value_has_no_standard_error_and_no_value_no_mean():
    moments = collected([(2.5, 1)])
    assert moments.estimate(1).mean == 2.5
    assert moments.estimate(1).standard_error is None
    assert moments.estimate(1).count == 1
    assert moments.estimate(0) is None


def test_by_hand():
    assert_same(collected([(1.0, 0), (2.0, 0), (6.0, 0)]).estimate(), oracle.Mean(3.0, math.sqrt(7 / 3), 3), 1e-15)


@pytest.mark.parametrize("value", [1.0, 0.0, 0.5])
@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_the_mean_of_equal_values_is_that_value_without_deviation(value, batch):
    for count in (2, 7, 49, 100):
        streamed = Moments(1)
        for start in range(0, count, batch):
            part = np.full(min(batch, count - start), value)
            streamed.add(part, np.zeros(len(part), dtype=np.int64))
        found = streamed.estimate()
        assert (found.mean, found.standard_error, found.count) == (value, 0.0, count)


def test_the_oracle_tells_the_other_standard_deviation():
    values = np.array([1.0, 2.0, 6.0])
    with pytest.raises(AssertionError):
        assert_same(oracle.Mean(3.0, values.std() / math.sqrt(3), 3), oracle.estimate(values.tolist()))
