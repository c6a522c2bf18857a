"""Against definitions written as loops, and textbook figures."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunetv2_plgcl.evaluation.statistics import bootstrap_interval, holm, paired_wilcoxon

# Darwin's maize: differences in height of 15 pairs of plants, in eighths of an inch
# (R. A. Fisher, The Design of Experiments, 1935, table 3).
DARWIN = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48], float)


def holm_by_definition(p: list[float]) -> list[float]:
    """The smallest level at which Holm's procedure rejects each hypothesis."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted = [0.0] * len(p)
    for place, index in enumerate(order):
        earlier = [(len(p) - k) * p[order[k]] for k in range(place + 1)]
        adjusted[index] = min(1.0, max(earlier))
    return adjusted


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_its_definition(p):
    assert holm(p) == pytest.approx(holm_by_definition(p))


def test_holm_on_an_example_by_hand_and_with_a_test_that_was_impossible():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    corrected = holm([0.02, math.nan, 0.03])
    assert corrected[0] == pytest.approx(0.04) and corrected[2] == pytest.approx(0.04)
    assert math.isnan(corrected[1])


def signed_rank_p(differences: np.ndarray) -> float:
    """Two-sided exact p by enumerating the signs; without ties and zeros."""
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    total = ranks.sum()
    seen = min(ranks[differences > 0].sum(), ranks[differences < 0].sum())
    sums = np.zeros(total + 1)
    sums[0] = 1
    for rank in ranks:
        sums[rank:] += sums[:-rank].copy()
    return min(1.0, 2 * sums[: seen + 1].sum() / sums.sum())


def test_wilcoxon_is_exact_for_few_cases():
    rng = np.random.default_rng(0)
    for differences in (DARWIN, rng.normal(0.3, 1, 20)):
        other = rng.uniform(size=len(differences)) * 0
        expected = signed_rank_p(differences)
        assert paired_wilcoxon(differences, other) == pytest.approx(expected)
    assert paired_wilcoxon(DARWIN, np.zeros(15)) == pytest.approx(0.0413, abs=1e-3)


def test_wilcoxon_with_ties_and_zeros_is_the_normal_approximation():
    """Ranks by hand: |1|, |1| share 1.5; 2 has 3, 3 has 4; the zero is left out. W+ = 8.5."""
    differences = np.array([1.0, -1.0, 2.0, 3.0, 0.0])
    mean, variance = 4 * 5 / 4, 4 * 5 * 9 / 24 - (2**3 - 2) / 48
    expected = math.erfc((8.5 - mean) / math.sqrt(variance) / math.sqrt(2))
    assert paired_wilcoxon(differences, np.zeros(5)) == pytest.approx(expected)


def test_wilcoxon_leaves_out_pairs_without_a_value():
    one = np.append(DARWIN, [math.nan, 100.0])
    other = np.append(np.zeros(15), [50.0, math.nan])
    assert paired_wilcoxon(one, other) == paired_wilcoxon(DARWIN, np.zeros(15))
    assert paired_wilcoxon(DARWIN, DARWIN) == 1.0
    assert math.isnan(paired_wilcoxon(np.array([math.nan]), np.array([1.0])))


def test_bootstrap_interval_is_that_of_the_normal_distribution_for_many_values():
    values = np.random.default_rng(1).normal(5, 2, 2000)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert bootstrap_interval(np.append(values, math.nan)) == (low, high)


def test_bootstrap_interval_of_too_few_or_equal_values():
    assert all(math.isnan(end) for end in bootstrap_interval(np.array([0.9, math.nan])))
    assert bootstrap_interval(np.full(5, 0.9)) == pytest.approx((0.9, 0.9))
