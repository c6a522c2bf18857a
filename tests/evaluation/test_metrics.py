"""Against MedPy, against DeepMind's surface-distance, and against plain geometry."""

import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import surface_distance
from conftest import SHARED_ACDC
from hypothesis import given, settings
from hypothesis import strategies as st
from medpy.metric import binary as medpy

from nnunetv2_plgcl.datasets.phantom import write_phantom
from nnunetv2_plgcl.evaluation.metrics import surface_distances

SPACINGS = [None, (10.0, 1.5, 1.25), (1.0, 1.0, 1.0)]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> list[tuple[np.ndarray, np.ndarray]]:
    """Segmentations of one heart at two times, cut to the same size: like a prediction and its
    reference, but worse. Real ones where they are at hand."""
    folder = SHARED_ACDC
    if not folder.is_dir():
        folder = tmp_path_factory.mktemp("phantom")
        write_phantom(folder, training=4, test=0)
    files = sorted((folder / "labelsTr").glob("*.nii.gz"))[:8]
    labels = [sitk.GetArrayFromImage(sitk.ReadImage(str(Path(file)))) for file in files]
    return list(zip(labels[::2], labels[1::2], strict=True))


def masks(pairs):
    for one, other in pairs:
        for label in (1, 2, 3):
            if (one == label).any() and (other == label).any():
                yield one == label, other == label


@pytest.mark.parametrize("spacing", SPACINGS)
def test_equal_to_medpy_on_real_segmentations(pairs, spacing):
    compared = 0
    for prediction, reference in masks(pairs):
        found = surface_distances(prediction, reference, spacing)
        expected = {
            name: getattr(medpy, name)(prediction, reference, voxelspacing=spacing)
            for name in ("hd95", "asd", "assd")
        }
        for name, value in expected.items():
            assert getattr(found, name)() == pytest.approx(value, abs=1e-6, rel=1e-6)
        compared += 1
    assert compared >= 9


def test_close_to_deepmind_where_surfaces_agree(pairs):
    """surface-distance weighs surface elements between voxels, we count surface voxels: the
    percentile of both together differs by less than a voxel's edge."""
    spacing = (10.0, 1.5, 1.25)
    for prediction, reference in masks(pairs):
        found = surface_distances(prediction, reference, spacing)
        theirs = surface_distance.compute_surface_distances(reference, prediction, spacing)
        robust = surface_distance.compute_robust_hausdorff(theirs, 95)
        assert found.hd95() == pytest.approx(robust, abs=max(spacing))


def test_distances_of_two_points_are_their_distance():
    one, other = np.zeros((2, 6, 9, 12), bool)
    one[1, 2, 3], other[4, 6, 3] = True, True
    found = surface_distances(one, other, (2.0, 1.0, 5.0))
    expected = math.hypot(3 * 2.0, 4 * 1.0)
    assert found.hd95() == found.asd() == found.assd() == pytest.approx(expected)


def test_squares_a_step_apart():
    """The outline of a shifted square: two sides a voxel away, the rest on the other's outline."""
    one, other = np.zeros((2, 20, 20), bool)
    one[5:10, 5:10], other[5:10, 6:11] = True, True
    found = surface_distances(one, other)
    assert found.hd95() == 1
    left_and_second = 5 + 3  # the left side is off; so is each inner voxel of the right one
    assert found.asd() == pytest.approx(left_and_second / 16)


def test_a_slice_has_an_outline():
    """A volume of one slice is measured as the slice."""
    generator = np.random.default_rng(0)
    one, other = generator.random((2, 1, 30, 30)) > 0.4
    flat = surface_distances(one[0], other[0], (1.5, 2.0))
    volume = surface_distances(one, other, (999.0, 1.5, 2.0))
    assert (volume.hd95(), volume.assd()) == (flat.hd95(), flat.assd())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), margin=st.integers(1, 5))
def test_background_around_changes_nothing(seed, margin):
    """Unless a mask touched the edge, which is a surface there."""
    generator = np.random.default_rng(seed)
    one, other = generator.random((2, 5, 6, 7)) > 0.5
    one[2, 2, 2] = other[3, 3, 3] = True
    padded = [np.pad(mask, margin) for mask in (one, other)]
    inside, outside = surface_distances(one, other), surface_distances(*padded)
    assert inside.hd95() == outside.hd95() and inside.assd() == pytest.approx(outside.assd())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_symmetric_metrics_do_not_care_which_is_which(seed):
    generator = np.random.default_rng(seed)
    one, other = generator.random((2, 6, 6, 6)) > 0.7
    one[0, 0, 0] = other[5, 5, 5] = True
    there, back = surface_distances(one, other), surface_distances(other, one)
    assert there.hd95() == back.hd95() and there.assd() == pytest.approx(back.assd())
    sizes = len(there.to_reference), len(back.to_reference)
    together = np.average((there.asd(), back.asd()), weights=sizes)
    assert there.assd() == pytest.approx(together)


def test_masks_without_a_surface_are_refused():
    full, empty = np.ones((3, 3, 3), bool), np.zeros((3, 3, 3), bool)
    with pytest.raises(ValueError, match="empty"):
        surface_distances(full, empty)
    with pytest.raises(ValueError, match="Shapes differ"):
        surface_distances(full, full[:2])
