from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from nnunetv2_plgcl.contrast.guidance import (
    GUIDES,
    ConfidenceGuide,
    CosineGuide,
    EntropyGuide,
    LowestEntropyGuide,
    cosine_similarity,
    draw_classes,
    of_classes,
)
from nnunetv2_plgcl.contrast.patches import Windows, WindowStatistics, window_statistics
from tests.oracles import contrast as oracle

DRAWS = 40_000


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _statistics(
    entropy: list[float], confidence: list[float], images: int = 1, coverage: float = 0.5
) -> WindowStatistics:
    """One class, windows of 2 x 2 voxels side by side, the same for all images."""
    shape = (images, 1, len(entropy))
    start = torch.tensor([[0, 2 * w] for w in range(len(entropy))])
    return WindowStatistics(
        start,
        torch.tensor(entropy).expand(shape),
        torch.tensor(confidence).expand(shape),
        torch.full(shape, coverage),
        (2, 2),
    )


def _index(windows: Windows) -> Tensor:
    return windows.start[..., 1] // 2


def _within_chance(observed: list[int], expected: list[float]) -> None:
    """Pearson's chi-square test at about five standard deviations."""
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    freedom = len(observed) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom) + 5, (observed, expected)


ENTROPY = [0.0, 0.3, 0.6, 0.9, 0.9999, 1.0]
CONFIDENCE = [1.0, 0.9, 0.2, 0.5, 0.0, 0.6]


@pytest.mark.parametrize(
    ("guide", "weight"),
    [
        (EntropyGuide(), [max(1 - h, 0.001) for h in ENTROPY]),
        (ConfidenceGuide(), [max(c, 0.001) for c in CONFIDENCE]),
    ],
)
def test_first_window_is_drawn_in_proportion_to_its_weight(guide, weight):
    statistics = _statistics(ENTROPY, CONFIDENCE, images=DRAWS)
    windows = guide(statistics, 1, generator=_generator())
    observed = _index(windows).flatten().bincount(minlength=len(weight)).tolist()
    _within_chance(observed, [w / sum(weight) * DRAWS for w in weight])


def test_several_windows_are_drawn_without_replacement():
    weight = [1.0, 0.7, 0.4, 0.1]
    statistics = _statistics([1 - w for w in weight], [0.5] * 4, images=DRAWS)
    pairs = _index(EntropyGuide()(statistics, 2, generator=_generator(1)))[:, 0]
    observed = Counter(map(tuple, pairs.tolist()))
    expected = oracle.without_replacement_pairs(weight)
    assert observed.keys() <= expected.keys()
    _within_chance([observed[p] for p in expected], [expected[p] * DRAWS for p in expected])


@pytest.mark.parametrize("guide", [EntropyGuide(), ConfidenceGuide()])
def test_a_drawn_window_is_positive_with_the_probability_of_its_confidence(guide):
    statistics = _statistics(ENTROPY, CONFIDENCE, images=DRAWS)
    windows = guide(statistics, 1, generator=_generator(2))
    index = _index(windows).flatten()
    for w, confidence in enumerate(CONFIDENCE):
        sides = windows.positive.flatten()[index == w].float()
        bound = 5 * math.sqrt(confidence * (1 - confidence) / max(1, len(sides)))
        assert abs(sides.sum().item() - confidence * len(sides)) <= bound * len(sides)


@pytest.mark.parametrize(
    ("guide", "weight"),
    [
        (EntropyGuide(balanced=True), [max(1 - h, 0.001) for h in ENTROPY]),
        (ConfidenceGuide(balanced=True), [max(c, 0.001) for c in CONFIDENCE]),
    ],
)
def test_balanced_sides_are_each_drawn_as_the_rule_would_draw_them(guide, weight):
    """Given its side, a window is as likely as under the rule: weight times its side's share."""
    windows = guide(_statistics(ENTROPY, CONFIDENCE, images=DRAWS), 2, generator=_generator(5))
    assert windows.positive[:, 0].tolist() == [[True, False]] * DRAWS
    for side, shares in enumerate((CONFIDENCE, [1 - c for c in CONFIDENCE])):
        expected = [w * share for w, share in zip(weight, shares, strict=True)]
        observed = _index(windows)[:, 0, side].bincount(minlength=len(weight)).tolist()
        possible = [i for i, e in enumerate(expected) if e]
        assert sum(observed[i] for i in possible) == DRAWS
        _within_chance(
            [observed[i] for i in possible],
            [expected[i] / sum(expected) * DRAWS for i in possible],
        )


def test_balanced_every_class_has_anchors_however_small():
    maps = torch.zeros(4, 2, 32, 32)
    maps[:3, 1, 10:13, 10:13] = 1
    maps[:, 0] = 1 - maps[:, 1]
    windows = EntropyGuide(balanced=True)(window_statistics(maps, 8, 2), 7, None, _generator())
    positives = (windows.valid & windows.positive).sum(-1)
    assert positives.tolist() == [[4, 4]] * 3 + [[4, 0]]


def test_uncertain_windows_are_rarely_drawn():
    statistics = _statistics([0.0] * 4 + [1.0] * 4, [0.5] * 8, images=2000)
    uncertain = (_index(EntropyGuide()(statistics, 1, generator=_generator(3))) >= 4).sum()
    assert uncertain < 10  # expected: 2000 * 0.004 / 4.004 = 2


def test_sure_and_unsure_windows_are_alike_to_the_confidence_guide():
    statistics = _statistics([0.0, 1.0], [0.5, 0.5], images=DRAWS)
    first = (_index(ConfidenceGuide()(statistics, 1, generator=_generator(4))) == 0).sum().item()
    assert abs(first - DRAWS / 2) < 5 * math.sqrt(DRAWS / 4)


def test_lowest_entropy_wins_among_windows_a_quarter_covered():
    torch.manual_seed(0)
    maps = torch.rand(3, 2, 10, 10) ** 3
    statistics = window_statistics(maps, 4, 2)
    windows = LowestEntropyGuide()(statistics, 5, generator=_generator())
    starts = oracle.grid_starts((10, 10), (4, 4), (2, 2))
    entropy, _, coverage = oracle.window_means(maps, starts, (4, 4))
    assert windows.positive.all()
    for b in range(3):
        for k in range(2):
            qualified = [w for w in range(len(starts)) if coverage[b, k, w] >= 0.25]
            best = sorted(qualified, key=lambda w: entropy[b, k, w])[:5]
            chosen = windows.start[b, k][windows.valid[b, k]].tolist()
            assert chosen == [list(starts[w]) for w in best]
            assert windows.valid[b, k].sum() == len(best)


def test_lowest_entropy_breaks_ties_at_random():
    statistics = _statistics([0.0] * 5, [1.0] * 5, images=DRAWS, coverage=1.0)
    first = _index(LowestEntropyGuide()(statistics, 1, generator=_generator())).flatten()
    _within_chance(first.bincount(minlength=5).tolist(), [DRAWS / 5] * 5)


def test_cosine_takes_the_most_similar_windows_that_hold_the_class():
    statistics = _statistics([0.5] * 5, [0.5] * 5)
    covered = torch.tensor([[[1.0, 0.0, 0.5, 1.0, 1.0]]])
    statistics = WindowStatistics(
        statistics.start, statistics.entropy, statistics.confidence, covered, (2, 2)
    )
    similarity = torch.tensor([[[-0.9, 0.99, 0.3, 0.8, -1.0]]])
    windows = CosineGuide()(statistics, 3, similarity)
    assert _index(windows).tolist() == [[[3, 2, 0]]]
    assert windows.positive.all() and windows.valid.all()
    assert CosineGuide()(statistics, 5, similarity).valid.sum() == 4


def test_cosine_breaks_ties_at_random():
    statistics = _statistics([0.5] * 5, [0.5] * 5, images=DRAWS)
    similarity = torch.zeros(DRAWS, 1, 5)
    first = _index(CosineGuide()(statistics, 1, similarity, _generator())).flatten()
    _within_chance(first.bincount(minlength=5).tolist(), [DRAWS / 5] * 5)


def test_cosine_similarity_compares_each_window_with_its_own_class():
    windows = torch.tensor([[[[1.0, 0.0], [0.6, 0.8]], [[1.0, 0.0], [0.0, -1.0]]]])
    means = torch.tensor([[0.5, 0.0], [0.0, 0.1]])
    expected = torch.tensor([[[1.0, 0.6], [0.0, -1.0]]])
    torch.testing.assert_close(cosine_similarity(windows, means), expected)
    assert (cosine_similarity(windows, torch.zeros(2, 2)) == 0).all()


@pytest.mark.parametrize("similarity", [None, torch.zeros(1, 1, 4)])
def test_cosine_without_fitting_similarity_says_what_it_needs(similarity):
    with pytest.raises(ValueError, match=r"\(1, 1, 5\), got"):
        CosineGuide()(_statistics([0.5] * 5, [0.5] * 5), 3, similarity)


def _call(name: str, statistics: WindowStatistics, num: int, seed: int = 0) -> Windows:
    guide = GUIDES[name]()
    similarity = statistics.confidence if guide.needs_similarity else None
    return guide(statistics, num, similarity, _generator(seed))


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("spatial", [(12, 9), (6, 9, 7)])
def test_valid_windows_hold_a_voxel_of_their_side(name, spatial):
    torch.manual_seed(0)
    maps = torch.softmax(6 * torch.randn(3, 4, *spatial), 1)
    windows = _call(name, window_statistics(maps, 3, 2), 30)
    assert windows.start.shape == (3, 4, 30, len(spatial))
    assert windows.size == (3,) * len(spatial)
    assert windows.valid.any()
    for b, k, n in windows.valid.nonzero().tolist():
        inside = maps[b, k][oracle.box(windows.start[b, k, n], windows.size)] >= 0.5
        assert (inside == windows.positive[b, k, n]).any()


@pytest.mark.parametrize("name", GUIDES)
def test_no_window_is_drawn_twice(name):
    torch.manual_seed(0)
    maps = torch.full((2, 2, 12, 12), 0.7)
    windows = _call(name, window_statistics(maps, 4, 2), 20)
    for starts, valid in zip(
        windows.start.flatten(0, 1).tolist(), windows.valid.flatten(0, 1).tolist(), strict=True
    ):
        chosen = [tuple(s) for s, v in zip(starts, valid, strict=True) if v]
        assert len(set(chosen)) == len(chosen)


@pytest.mark.parametrize("name", GUIDES)
def test_fewer_candidates_than_asked_for_leave_the_rest_invalid(name):
    windows = _call(name, window_statistics(torch.ones(2, 3, 4, 6), 99), 7)
    assert windows.start.shape == (2, 3, 7, 2) and windows.size == (4, 6)
    assert windows.valid.sum(-1).eq(1).all()
    assert (windows.start == 0).all()


@pytest.mark.parametrize("name", GUIDES)
def test_an_absent_class_yields_no_valid_positive(name):
    maps = torch.zeros(2, 2, 8, 8)
    maps[:, 0] = 1
    windows = _call(name, window_statistics(maps, 4), 6)
    assert windows.count().tolist()[1] == 0
    assert windows.count()[0] == 12  # the class that fills the image
    negatives = (windows.valid & ~windows.positive).sum((0, 2)).tolist()
    assert negatives == ([0, 12] if name in ("entropy", "confidence") else [0, 0])


@pytest.mark.parametrize("name", ["entropy", "confidence"])
def test_an_all_unsure_map_is_drawn_uniformly_and_yields_positives_only(name):
    statistics = window_statistics(torch.full((DRAWS // 8, 1, 8, 4), 0.5), 4, 1)
    windows = _call(name, statistics, 1)
    observed = windows.start[..., 0].flatten().bincount(minlength=5).tolist()
    _within_chance(observed, [DRAWS / 8 / 5] * 5)
    assert torch.equal(windows.valid, windows.positive)  # the mask is full: no negative side
    assert abs(windows.positive.float().mean() - 0.5) < 5 * math.sqrt(0.25 / (DRAWS / 8))


@pytest.mark.parametrize("name", GUIDES)
def test_a_class_of_one_voxel_is_a_valid_positive_only_where_the_voxel_is(name):
    maps = torch.zeros(400, 1, 8, 8)
    maps[:, :, 5, 2] = 1
    windows = _call(name, window_statistics(maps, 3, 1), 9)
    start = windows.start[windows.valid & windows.positive]
    holds = (start <= torch.tensor([5, 2])) & (start + 3 > torch.tensor([5, 2]))
    assert holds.all()
    assert (len(start) > 0) == (name != "lowest_entropy")  # 1 of 9 voxels is below a quarter


@pytest.mark.parametrize("name", GUIDES)
def test_windows_of_a_map_with_nan_are_never_valid(name):
    maps = torch.rand(2, 2, 8, 8)
    maps[0] = math.nan
    maps[1, 0, 0, 0] = math.nan
    windows = _call(name, window_statistics(maps, 4, 2), 9)
    assert not windows.valid[0].any() and not windows.valid[1, 0].any()
    assert windows.valid[1, 1].any()


@pytest.mark.parametrize("name", GUIDES)
def test_windows_with_nan_in_their_statistics_are_never_valid(name):
    statistics = window_statistics(torch.rand(1, 1, 8, 8), 4, 2)
    for values in (statistics.entropy, statistics.confidence, statistics.coverage):
        values[0, 0, 0] = math.nan
    windows = _call(name, statistics, 9)
    valid_starts = windows.start[windows.valid].tolist()
    assert valid_starts and [0, 0] not in valid_starts


@pytest.mark.parametrize("name", GUIDES)
def test_the_same_generator_draws_the_same_windows(name):
    torch.manual_seed(0)
    statistics = window_statistics(torch.rand(2, 3, 16, 16), 4)
    one, two = _call(name, statistics, 8, seed=5), _call(name, statistics, 8, seed=5)
    assert torch.equal(one.start, two.start) and torch.equal(one.positive, two.positive)


@pytest.mark.parametrize("name", ["entropy", "confidence", "lowest_entropy"])
def test_permuting_classes_permutes_what_can_be_drawn(name):
    """With as many windows as candidates the drawn set is known."""
    torch.manual_seed(0)
    maps = torch.softmax(4 * torch.randn(1, 3, 8, 8), 1)
    order = torch.tensor([2, 0, 1])
    there = _call(name, window_statistics(maps, 4, 2), 9)
    back = _call(name, window_statistics(maps[:, order], 4, 2), 9)
    for k in range(3):
        one, two = there.start[0, order[k]].tolist(), back.start[0, k].tolist()
        if name == "lowest_entropy":
            one = [s for s, v in zip(one, there.valid[0, order[k]].tolist(), strict=True) if v]
            two = [s for s, v in zip(two, back.valid[0, k].tolist(), strict=True) if v]
        assert sorted(one) == sorted(two)


@pytest.mark.parametrize("name", GUIDES)
def test_less_than_one_window_is_refused(name):
    with pytest.raises(ValueError, match=r"num must be at least 1.*got 0"):
        _call(name, window_statistics(torch.rand(1, 1, 8, 8), 4), 0)


@pytest.mark.parametrize("axes", [2, 3])
def test_classes_that_a_patch_shows_are_drawn_before_others_and_each_as_often(axes):
    confidence = torch.full((2, 7, *[6] * axes), 0.1)
    for image, k in ((0, 1), (1, 3), (0, 4), (1, 4), (1, 6)):
        confidence[(image, k, *[image + 2] * axes)] = 0.6
    generator = _generator()
    seen: Counter[int] = Counter()
    for _ in range(3000):
        classes = draw_classes(confidence, 2, generator)
        assert classes.tolist() == sorted(set(classes.tolist())) and len(classes) == 2
        seen.update(classes.tolist())
    assert set(seen) == {1, 3, 4, 6}
    assert all(abs(number - 1500) < 5 * 1500**0.5 for number in seen.values())
    more = draw_classes(confidence, 6, generator)  # than are shown
    assert {1, 3, 4, 6} < set(more.tolist()) and len(more) == 6
    assert torch.equal(of_classes(more, confidence), confidence[:, more])
    assert torch.equal(of_classes(more, torch.arange(7), 0), more)


def test_nothing_is_drawn_where_every_class_has_its_place():
    confidence = torch.rand(1, 3, 4, 4)
    generator = _generator()
    before = generator.get_state()
    for number in (3, 8, None):
        assert draw_classes(confidence, number, generator) is None
    assert of_classes(None, confidence) is confidence
    assert torch.equal(generator.get_state(), before)
