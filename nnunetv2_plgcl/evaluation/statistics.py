"""Paired tests and bootstrap intervals over cases. Source: ours, by scipy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

RESAMPLES = 10_000
CONFIDENCE = 0.95


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean.

    Args:
        values: (N,), one for each case; NaN is left out.
        seed: of the resampling.

    Returns:
        Lower and upper end; NaN for fewer than two values.
    """
    known = values[~np.isnan(values)]
    if len(known) < 2:
        return math.nan, math.nan
    interval = stats.bootstrap(
        (known,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE,
        method="percentile", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(interval.low), float(interval.high)


def paired_wilcoxon(one: np.ndarray, other: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test.

    Exact for up to 50 pairs without ties, else by the normal approximation.

    Args:
        one, other: (N,), of the same cases in the same order; pairs with a NaN are left out.

    Returns:
        1 where all pairs are equal, NaN without a pair.
    """
    differences = (one - other)[~np.isnan(one - other)]
    if len(differences) == 0:
        return math.nan
    if not differences.any():
        return 1.0
    # scipy's "auto" enumerates signs in Python for ties among few pairs: minutes for a table
    tied = len(np.unique(np.abs(differences))) < len(differences) or not differences.all()
    method = "asymptotic" if tied else "auto"
    return float(stats.wilcoxon(differences, method=method).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for testing several hypotheses; NaN stays and does not count."""
    adjusted = np.array(p_values, dtype=float)
    known = np.flatnonzero(~np.isnan(adjusted))
    order = known[np.argsort(adjusted[known])]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(adjusted[order] * factors))
    return adjusted.tolist()
