import itertools

import numpy as np
import pytest
import torch
from nnunetv2.postprocessing.remove_connected_components import (
    remove_all_but_largest_component_from_segmentation,
)

from nnunetv2_plgcl.semisupervised.components import (
    confident,
    filter_patches,
    filter_volume,
    largest,
    near,
)
from nnunetv2_plgcl.semisupervised.targets import class_probabilities, hard_target

RULES = {"largest": largest, "confident": confident(0.62)}


def components(mask):
    """Lists of voxels, by flooding."""
    left, found = {tuple(v) for v in np.argwhere(mask).tolist()}, []
    while left:
        front, component = [left.pop()], []
        while front:
            voxel = front.pop()
            component.append(voxel)
            for step in itertools.product((-1, 0, 1), repeat=mask.ndim):
                neighbour = tuple(v + s for v, s in zip(voxel, step, strict=True))
                if neighbour in left:
                    left.remove(neighbour)
                    front.append(neighbour)
        found.append(component)
    return found


def to_remove(mask, confidence, rule):
    """Voxels of a mask that must go."""
    found = components(mask)
    if rule == "largest":
        most = max(map(len, found), default=0)
        gone = [c for c in found if len(c) < most]
    else:
        gone = [c for c in found if sum(float(confidence[v]) for v in c) < 0.62 * len(c)]
    return [voxel for component in gone for voxel in component]


def blobs(exclusive, spatial, batch=2, classes=3):
    """Probabilities of smooth noise: several components a class, some surer than others."""
    noise = torch.randn(batch, classes, *spatial, generator=torch.Generator().manual_seed(1))
    pool = torch.nn.functional.avg_pool2d if len(spatial) == 2 else torch.nn.functional.avg_pool3d
    logits = pool(noise, 3, stride=1, padding=1)
    logits = 2 * logits / logits.std()
    # mostly background, so that there are islands
    logits[:, : 1 if exclusive else classes] += 3 if exclusive else -2
    return class_probabilities(logits, exclusive)


@pytest.mark.parametrize("spatial", [(24, 20), (8, 12, 10)])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("exclusive", [True, False])
def test_components_of_patches_go_as_a_flood_finds_them(exclusive, ignore, whole, rule, spatial):
    p = blobs(exclusive, spatial)
    before = hard_target(p, exclusive, 0.4)
    expected = before.numpy().copy()
    removed = 0
    for target, maps in zip(expected, p.numpy(), strict=True):
        if exclusive:
            masks, of_masks = [target[0] == k for k in (1, 2)], list(maps[1:])
            foreground = 1 - maps[0]
        else:
            masks, of_masks = list(target[:3].copy()), list(maps)
            foreground = maps.max(0)
        if whole:
            masks, of_masks = [np.any(masks, axis=0)], [foreground]
        for number, (mask, confidence) in enumerate(zip(masks, of_masks, strict=True)):
            for voxel in to_remove(mask, confidence, rule):
                removed += 1
                if exclusive:
                    target[(0, *voxel)] = 3 if ignore else 0
                elif ignore:
                    target[(slice(None), *voxel)] = [False] * 3 + [True]
                else:
                    target[(slice(0, 3) if whole else number, *voxel)] = False
    assert removed > 0
    after = filter_patches(before, p, RULES[rule], exclusive, whole, ignore)
    assert after.dtype == before.dtype
    assert torch.equal(after, torch.from_numpy(expected))


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_the_largest_components_of_volumes_are_those_of_nnunets_postprocessing(whole, regions):
    p = blobs(True, (8, 24, 20), batch=1)
    segmentation = hard_target(p, True)[0, 0].numpy()
    which = [(1, 2), 2] if regions else [1, 2]
    before = segmentation.copy()
    expected = segmentation
    for step in [which] if whole else which:
        expected = remove_all_but_largest_component_from_segmentation(expected, step, 0)
    assert (expected != segmentation).any()
    maps = p[0, 1:] if regions else p[0]
    ours = filter_volume(segmentation, maps.numpy(), largest, which, whole)
    assert np.array_equal(ours, expected) and np.array_equal(segmentation, before)


@pytest.mark.parametrize("replacement", [0, 3])
def test_unsure_components_of_volumes_go(replacement):
    p = blobs(True, (8, 24, 20), batch=1)
    segmentation = hard_target(p, True)[0, 0].numpy()
    expected = segmentation.copy()
    for k in (1, 2):
        for voxel in to_remove(segmentation == k, p[0, k].numpy(), "confident"):
            expected[voxel] = replacement
    assert (expected != segmentation).any()
    ours = filter_volume(segmentation, p[0].numpy(), RULES["confident"], [1, 2], False, replacement)
    assert np.array_equal(ours, expected)


@pytest.mark.parametrize(("shape", "margin"), [((9, 11), [2, 0]), ((5, 6, 7), [0, 1, 2])])
def test_near_is_a_box_around_each_voxel(shape, margin):
    mask = torch.rand(2, 1, *shape) < 0.05
    expected = torch.zeros_like(mask)
    for image, _, *voxel in mask.nonzero().tolist():
        box = [slice(max(0, v - m), v + m + 1) for v, m in zip(voxel, margin, strict=True)]
        expected[(image, 0, *box)] = True
    assert mask.any() and not expected.all()
    assert torch.equal(near(mask, margin), expected)


@pytest.mark.parametrize("rule", RULES)
def test_patches_without_foreground_and_empty_batches_stay_as_they_are(rule):
    p = torch.tensor([0.8, 0.1, 0.1]).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    nothing = hard_target(p, True)
    assert torch.equal(filter_patches(nothing, p, RULES[rule], True), nothing)
    assert filter_patches(nothing[:0], p[:0], RULES[rule], True).shape == (0, 1, 8, 8)


def test_a_false_island_of_real_mri_goes_and_the_heart_stays(acdc):
    """An island of 0.8 beside a ventricle of 0.95 is the failure that the filter is for."""
    import SimpleITK as sitk

    label = sitk.GetArrayFromImage(
        sitk.ReadImage(str(acdc / "labelsTr" / "patient021_frame01.nii.gz"))
    )
    with_island = label.copy()
    with_island[-1, :4, :4] = 3
    assert not label[-1, :4, :4].any()
    p = np.full((4, *label.shape), 0.05 / 3, np.float32)
    np.put_along_axis(p, label[None].astype(int), 0.95, 0)
    p[:, -1, :4, :4] = np.array([0.1, 0.05, 0.05, 0.8], np.float32)[:, None, None]
    for rule in (largest, confident(0.9)):
        cleaned = filter_volume(with_island, p, rule, [1, 2, 3], rule is largest)
        assert np.array_equal(cleaned, label)
