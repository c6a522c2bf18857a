from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_plgcl.contrast.patches import (
    Windows,
    bernoulli_entropy,
    every_window,
    window_statistics,
)
from tests.oracles import contrast as oracle


def _random_maps(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Probabilities with exact zeros, ones and halves among them."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(shape, generator=generator)
    choice = torch.randint(0, 6, shape, generator=generator)
    for value, exact in enumerate((0.0, 1.0, 0.5)):
        maps[choice == value] = exact
    return maps


@pytest.mark.parametrize(
    ("shape", "size", "stride"),
    [
        ((2, 3, 11, 14), 4, 2),
        ((1, 2, 9, 16), (3, 8), (1, 5)),
        ((2, 2, 7, 8, 9), 4, None),
        ((1, 2, 5, 9, 6), (5, 2, 3), (1, 3, 2)),
        ((1, 2, 19), 5, 3),
    ],
)
def test_window_means_equal_a_loop_over_voxels(shape, size, stride):
    maps = _random_maps(shape)
    axes = len(shape) - 2
    edges = (size,) * axes if isinstance(size, int) else size
    steps = stride
    if stride is None:
        steps = tuple(max(1, e // 4) for e in edges)
    elif isinstance(stride, int):
        steps = (stride,) * axes
    starts = oracle.grid_starts(shape[2:], edges, steps)

    statistics = window_statistics(maps, size, stride)

    assert statistics.start.tolist() == [list(s) for s in starts]
    assert statistics.size == edges
    entropy, confidence, coverage = oracle.window_means(maps, starts, edges)
    torch.testing.assert_close(statistics.entropy.double(), entropy, atol=2e-6, rtol=0)
    torch.testing.assert_close(statistics.confidence.double(), confidence, atol=2e-6, rtol=0)
    torch.testing.assert_close(statistics.coverage.double(), coverage, atol=2e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    image=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    data=st.data(),
)
def test_every_grid_window_lies_in_the_image(image, data):
    size = [data.draw(st.integers(1, 12)) for _ in image]
    stride = [data.draw(st.integers(1, 12)) for _ in image]
    statistics = window_statistics(torch.rand(1, 1, *image), size, stride)
    edges = [min(s, length) for s, length in zip(size, image, strict=True)]
    assert list(statistics.size) == edges
    assert statistics.start.tolist() == [list(s) for s in oracle.grid_starts(image, edges, stride)]


def test_windows_longer_than_the_image_are_cut_to_the_image():
    maps = _random_maps((1, 2, 6, 10))
    statistics = window_statistics(maps, 8)
    assert statistics.size == (6, 8)
    assert statistics.start.tolist() == [[0, 0], [0, 2]]
    whole = window_statistics(maps, 999)
    assert whole.size == (6, 10) and whole.start.tolist() == [[0, 0]]
    torch.testing.assert_close(whole.confidence[..., 0], maps.mean((2, 3)))


def test_permuting_classes_or_images_permutes_the_statistics():
    maps = _random_maps((3, 4, 8, 8))
    classes, images = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    straight, permuted = window_statistics(maps, 4), window_statistics(maps[images][:, classes], 4)
    torch.testing.assert_close(permuted.entropy, straight.entropy[images][:, classes])
    torch.testing.assert_close(permuted.coverage, straight.coverage[images][:, classes])


def test_exchanging_a_class_with_its_complement_keeps_the_entropy():
    maps = _random_maps((1, 1, 8, 8)).clamp(0.25, 0.75)
    there, back = window_statistics(maps, 4), window_statistics(1 - maps, 4)
    torch.testing.assert_close(there.entropy, back.entropy)
    torch.testing.assert_close(there.confidence, 1 - back.confidence)


def test_entropy_equals_the_formula_and_is_exact_at_certainty():
    p = torch.linspace(0, 1, 1001, dtype=torch.float64)
    expected = torch.tensor([oracle.entropy_bits(x) for x in p.tolist()], dtype=torch.float64)
    torch.testing.assert_close(bernoulli_entropy(p), expected, atol=1e-12, rtol=0)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        exact = bernoulli_entropy(torch.tensor([0.0, 0.5, 1.0], dtype=dtype))
        assert exact[0] == 0 and exact[2] == 0 and exact[1].item() == pytest.approx(1, abs=1e-6)
    rounded = bernoulli_entropy(torch.tensor([-1e-7, 1 + 2e-7]))
    assert rounded.tolist() == [0, 0]
    assert bernoulli_entropy(torch.tensor([math.nan])).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_confidence_is_averaged_in_float32(dtype):
    maps = _random_maps((1, 2, 40, 40)).to(dtype)
    statistics = window_statistics(maps, 32, 8)
    assert statistics.entropy.dtype == torch.float32
    reference = window_statistics(maps.float(), 32, 8)
    assert torch.equal(statistics.entropy, reference.entropy)
    assert torch.equal(statistics.confidence, reference.confidence)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = window_statistics(maps.float(), 32, 8)
    assert torch.equal(again.entropy, reference.entropy)


@pytest.mark.parametrize("edge", [1, 3, 7, 24, 37, 100])
def test_full_empty_and_nearly_full_windows_are_told_apart(edge):
    maps = torch.zeros(1, 4, edge, edge)
    maps[:, 1] = 1
    maps[:, 2] = 1
    maps[:, 2, edge // 2, edge // 3] = 0  # all voxels but one
    maps[:, 3, edge // 2, edge // 3] = 1  # one voxel
    statistics = window_statistics(maps, edge)
    one = edge == 1
    assert statistics.covered()[0, :, 0].tolist() == [False, True, not one, True]
    assert statistics.uncovered()[0, :, 0].tolist() == [True, False, True, not one]


@pytest.mark.parametrize(("edge", "needed"), [(3, 3), (4, 4), (2, 1), (1, 1), (5, 7)])
def test_a_quarter_of_the_window_is_counted_in_whole_voxels(edge, needed):
    volume = edge**2
    maps = torch.zeros(volume, 1, volume)  # image i has i + 1 voxels of the class
    for image in range(volume):
        maps[image, 0, : image + 1] = 1
    covered = window_statistics(maps.view(volume, 1, edge, edge), edge).covered(0.25)[:, 0, 0]
    assert covered.tolist() == [n + 1 >= needed for n in range(volume)]


@pytest.mark.parametrize("certain", [0, 2, 3])
def test_what_is_certain_has_the_same_statistics_without_computing_them(certain):
    maps = _random_maps((3, 2, 12, 9))
    maps[:certain] = maps[:certain].round()
    saved, computed = window_statistics(maps, 4, 3, certain), window_statistics(maps, 4, 3)
    for name in ("start", "entropy", "confidence", "coverage"):
        assert torch.equal(getattr(saved, name), getattr(computed, name))
    maps[0] = 0.5
    unlike = window_statistics(maps, 4, 3, 1).entropy[0], window_statistics(maps, 4, 3).entropy[0]
    assert unlike[0].eq(0).all() and unlike[1].eq(1).all()


def test_every_window_lists_all_candidates_as_positives():
    maps = torch.zeros(2, 3, 8, 8)
    maps[0, 1, 0, 0] = 1
    statistics = window_statistics(maps, 4, 4)
    windows = every_window(statistics)
    assert windows.start.shape == (2, 3, 4, 2)
    assert torch.equal(windows.start[1, 2], statistics.start)
    assert windows.positive.all()
    assert windows.valid.nonzero().tolist() == [[0, 1, 0]]


def test_count_adds_valid_positives_over_the_batch():
    positive = torch.tensor([[[True, True], [True, False]], [[True, False], [False, False]]])
    valid = torch.tensor([[[True, False], [True, True]], [[True, True], [True, True]]])
    windows = Windows(torch.zeros(2, 2, 2, 2, dtype=torch.long), positive, valid, (1, 1))
    assert windows.count().tolist() == [2, 1]


@pytest.mark.parametrize(
    ("maps", "size", "stride", "error", "message"),
    [
        (torch.zeros(1, 1, 4, 4, dtype=torch.long), 2, None, TypeError, "int64"),
        (torch.zeros(4, 4), 2, None, ValueError, r"\(4, 4\)"),
        (torch.zeros(1, 1, 4, 4), 0, None, ValueError, "size must be.*got 0"),
        (torch.zeros(1, 1, 4, 4), (2, 2, 2), None, ValueError, "2 spatial axes"),
        (torch.zeros(1, 1, 4, 4), 2, -1, ValueError, "stride must be.*got -1"),
    ],
)
def test_bad_arguments_are_named(maps, size, stride, error, message):
    with pytest.raises(error, match=message):
        window_statistics(maps, size, stride)
