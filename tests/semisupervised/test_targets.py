import itertools

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_plgcl.semisupervised.targets import (
    UNKNOWN,
    at_every_resolution,
    background_where,
    class_probabilities,
    class_shares,
    confidence,
    foreground,
    foreground_masks,
    hard_target,
    ignore_where,
    join_targets,
    label_probabilities,
    most_probable,
)


def test_probabilities_of_exclusive_classes_sum_to_one_and_regions_do_not_compete():
    logits = torch.randn(2, 3, 4, 5)
    softmax = class_probabilities(logits, exclusive=True)
    torch.testing.assert_close(softmax.sum(1), torch.ones(2, 4, 5))
    sigmoid = class_probabilities(logits, exclusive=False)
    torch.testing.assert_close(sigmoid, 1 / (1 + torch.exp(-logits)))


@pytest.mark.parametrize("spatial", [(4, 5), (3, 4, 5)])
@pytest.mark.parametrize("ignore_label", [None, 3])
def test_label_maps_mark_each_voxel_once_and_ignored_voxels_nowhere(spatial, ignore_label):
    highest = 3 if ignore_label is None else 4
    target = torch.randint(0, highest, (2, 1, *spatial), dtype=torch.int16)
    maps = label_probabilities(target, 3, exclusive=True, ignore_label=ignore_label)
    assert maps.shape == (2, 3, *spatial)
    for image in range(2):
        for index in torch.cartesian_prod(*[torch.arange(n) for n in spatial]):
            where = tuple(index.tolist())
            label = int(target[(image, 0, *where)])
            for k in range(3):
                expected = UNKNOWN if label == ignore_label else float(label == k)
                assert maps[(image, k, *where)].item() == pytest.approx(expected)


def test_region_maps_overlap_and_their_last_channel_is_the_ignore_mask():
    target = torch.zeros(1, 3, 2, 2, dtype=torch.bool)
    target[0, 0, 0] = True  # region 0 in the upper row
    target[0, 1, 0, 0] = True  # region 1 inside it
    target[0, 2, 1, 1] = True  # to be ignored
    maps = label_probabilities(target, 2, exclusive=False, ignore_label=9)
    assert maps[0, 0].tolist() == [[1, 1], [0, pytest.approx(UNKNOWN)]]
    assert maps[0, 1].tolist() == [[1, 0], [0, pytest.approx(UNKNOWN)]]


def probability_maps(exclusive, spatial=(4, 5), classes=3):
    logits = 2 * torch.randn(2, classes, *spatial, generator=torch.Generator().manual_seed(0))
    return class_probabilities(logits, exclusive)


def voxels(maps):
    """Image, position of each voxel, and its values in all channels."""
    for image, *where in itertools.product(*[range(n) for n in (len(maps), *maps.shape[2:])]):
        yield image, tuple(where), maps[(image, slice(None), *where)].tolist()


@pytest.mark.parametrize("spatial", [(4, 5), (3, 4, 5)])
@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_hard_labels_are_the_surest_class_or_the_ignore_label(spatial, threshold):
    maps = probability_maps(True, spatial)
    target = hard_target(maps, True, threshold)
    assert target.shape == (2, 1, *spatial) and target.dtype == torch.int16
    for image, where, values in voxels(maps):
        expected = values.index(max(values)) if max(values) >= threshold else 3
        assert target[(image, 0, *where)] == expected
    assert (target == 3).any() == (threshold > 0)


@pytest.mark.parametrize("spatial", [(4, 5), (3, 4, 5)])
@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_hard_regions_come_with_a_mask_of_what_is_to_be_ignored(spatial, threshold):
    maps = probability_maps(False, spatial)
    target = hard_target(maps, False, threshold)
    assert target.shape == (2, 4, *spatial) and target.dtype == torch.bool
    for image, where, values in voxels(maps):
        sure = all(p >= threshold or p <= 1 - threshold for p in values)
        expected = [sure and p > 0.5 for p in values] + [not sure]
        assert target[(image, slice(None), *where)].tolist() == expected
    assert target[:, 3].any() == (threshold > 0)


@pytest.mark.parametrize("exclusive", [True, False])
def test_more_can_be_ignored_later(exclusive):
    maps = probability_maps(exclusive)
    before = hard_target(maps, exclusive)
    where = confidence(maps, exclusive) < 0.7
    after = ignore_where(before, where, 3, exclusive)
    assert torch.equal(after, hard_target(maps, exclusive, 0.7))
    assert not torch.equal(after, before)


@pytest.mark.parametrize("exclusive", [True, False])
def test_background_is_certain_where_it_is_said_to_be(exclusive):
    maps = probability_maps(exclusive)
    before, where = maps.clone(), torch.rand(len(maps), 1, *maps.shape[2:]) < 0.5
    said = background_where(maps, where, exclusive)
    assert torch.equal(maps, before), "its argument stays as it is"
    certain = torch.tensor([1.0, 0, 0]) if exclusive else torch.zeros(3)
    for image, voxel, values in voxels(maps):
        expected = certain if where[(image, 0, *voxel)] else torch.tensor(values)
        assert torch.equal(said[(image, slice(None), *voxel)], expected)


@pytest.mark.parametrize("exclusive", [True, False])
def test_foreground_masks_leave_out_background_and_what_is_ignored(exclusive):
    target = hard_target(probability_maps(exclusive), exclusive, 0.6)
    masks = foreground_masks(target, 3, exclusive)
    for image, where, values in voxels(target):
        expected = [values == [1], values == [2]] if exclusive else values[:3]
        assert masks[(image, slice(None), *where)].tolist() == expected
    assert torch.equal(foreground(target, 3, exclusive), masks.any(1, True))


@pytest.mark.parametrize(
    ("exclusive", "spatial", "scales"),
    [
        (True, (12, 20), [[1, 1], [0.5, 0.5], [0.25, 0.25]]),
        (True, (6, 16, 12), [[1, 1, 1], [1, 0.5, 0.5], [0.5, 0.25, 0.25]]),
        (False, (12, 20), [[0.5, 1.0], [0.5, 0.5]]),
        (False, (6, 16, 12), [[1, 1, 1], [0.5, 0.5, 0.5]]),
    ],
)
def test_each_resolution_is_what_nnunet_makes_of_a_label(exclusive, spatial, scales):
    target = hard_target(probability_maps(exclusive, spatial), exclusive, 0.6)
    pyramid = at_every_resolution(target, scales)
    validation = nnUNetTrainer.get_validation_transforms(scales)
    for image, whole in enumerate(target):
        label = validation(image=torch.zeros(1, *spatial), segmentation=whole)["segmentation"]
        for ours, nnunets in zip(pyramid, label, strict=True):
            assert ours.dtype == nnunets.dtype
            assert torch.equal(ours[image], nnunets)
    # and each cell holds the voxel at its centre
    for scale, cells in zip(scales, pyramid, strict=True):
        for image, where, values in voxels(cells):
            centre = [int((i + 0.5) / s) for i, s in zip(where, scale, strict=True)]
            assert target[(image, slice(None), *centre)].tolist() == values


def test_without_deep_supervision_there_is_one_resolution():
    target = hard_target(probability_maps(True), True)
    (only,) = at_every_resolution(target, None)
    assert only is target


@pytest.mark.parametrize("ignore", [True, False])
@pytest.mark.parametrize("exclusive", [True, False])
def test_joined_targets_ignore_no_labelled_voxel(exclusive, ignore):
    scales = [[1, 1], [0.5, 0.5]]
    pseudo = at_every_resolution(hard_target(probability_maps(exclusive), exclusive, 0.7), scales)
    labelled = [t.clone() for t in pseudo]
    if not exclusive and not ignore:
        labelled = [t[:, :3] for t in labelled]
    for joined, label, pseudo_label in zip(
        join_targets(labelled, pseudo), labelled, pseudo, strict=True
    ):
        assert joined.dtype == label.dtype and joined.shape[1] == pseudo_label.shape[1]
        assert torch.equal(joined[2:], pseudo_label)
        assert torch.equal(joined[:2, : label.shape[1]], label)
        assert not joined[:2, label.shape[1] :].any()


@pytest.mark.parametrize("exclusive", [True, False])
def test_shares_of_classes_are_those_of_a_loop_over_voxels(exclusive):
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    probabilities = class_probabilities(logits, exclusive)
    counts = [0] * (3 if exclusive else 4)
    for b, x, y in itertools.product(range(2), range(4), range(5)):
        voxel = probabilities[b, :, x, y].tolist()
        if exclusive:
            counts[voxel.index(max(voxel))] += 1
            continue
        chosen = [k for k in range(3) if voxel[k] > 0.5]
        for k in [1 + k for k in chosen] or [0]:
            counts[k] += 1
    expected = torch.tensor([*counts, 40]) / 40
    torch.testing.assert_close(class_shares(probabilities, 3, exclusive), expected)
    torch.testing.assert_close(
        class_shares(hard_target(probabilities, exclusive), 3, exclusive), expected
    )


@pytest.mark.parametrize("exclusive", [True, False])
def test_ignored_voxels_are_of_no_class(exclusive):
    probabilities = class_probabilities(10 * torch.eye(3)[:, :, None, None], exclusive)
    target = hard_target(probabilities.expand(3, 3, 2, 2), exclusive)
    ignored = torch.zeros(3, 1, 2, 2, dtype=torch.bool)
    ignored[1] = True
    shares = class_shares(ignore_where(target, ignored, 3, exclusive), 3, exclusive)
    expected = [1, 0, 1, 2] if exclusive else [0, 1, 0, 1, 2]
    expected = [number / 3 for number in expected]
    torch.testing.assert_close(shares, torch.tensor(expected))
    nothing = ignore_where(target, ignored | True, 3, exclusive)
    assert not class_shares(nothing, 3, exclusive).any()


@pytest.mark.parametrize("spatial", [(5, 7), (4, 5, 6)])
def test_most_probable_class_is_the_lowest_of_several(spatial):
    probabilities = torch.randint(3, (2, 4, *spatial)) / 2  # many ties
    expected = torch.from_numpy(probabilities.numpy().argmax(1))  # NumPy: the first
    assert torch.equal(most_probable(probabilities)[:, 0], expected)
