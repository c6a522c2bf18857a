import itertools

import pytest
import torch

from nnunetv2_plgcl.semisupervised.spatial import SpatialView
from nnunetv2_plgcl.semisupervised.targets import at_every_resolution

CASES = {
    "square": ((8, 8), (1.0, 1.0), (0, 1)),
    "oblong": ((8, 12), (1.0, 1.0), (0, 1)),
    "unequal spacing": ((8, 8), (1.0, 1.5), (0, 1)),
    "nearly equal spacing": ((8, 8), (0.7812, 0.7813), (0, 1)),
    "one axis": ((8, 8), (1.0, 1.0), (1,)),
    "nothing": ((8, 8), (1.0, 1.0), None),
    "cube": ((4, 4, 4), (1.0, 1.0, 1.0), (0, 1, 2)),
    "slices": ((4, 8, 8), (5.0, 1.0, 1.0), (0, 1, 2)),
    "not through the slices": ((4, 8, 8), (5.0, 1.0, 1.0), (1, 2)),
    "all different": ((4, 6, 8), (1.0, 1.0, 1.0), (0, 1, 2)),
    "left and right": ((4, 8, 8), (1.0, 1.0, 1.0), (0, 1)),
}


def moved(patch, permutation, flips):
    """Permute the axes of one channel and flip some, voxel by voxel."""
    out = torch.empty([patch.shape[axis] for axis in permutation])
    for where in itertools.product(*[range(n) for n in out.shape]):
        source = [0] * patch.ndim
        for axis, index in enumerate(where):
            length = out.shape[axis]
            source[permutation[axis]] = length - 1 - index if axis in flips else index
        out[where] = patch[tuple(source)]
    return out


def reachable(patch, spacing, mirror_axes):
    """All images of a patch under the rule in words: one rotation in one plane, then flips."""
    mirror_axes = mirror_axes or ()
    pairs = list(itertools.combinations(mirror_axes, 2))
    square = [
        (a, b)
        for a, b in pairs
        if patch.shape[a] == patch.shape[b] and abs(spacing[a] / spacing[b] - 1) < 0.01
    ]
    same = tuple(range(patch.ndim))
    rotations = [moved(patch, same, pair) for pair in square or pairs] or [patch]
    for a, b in square:
        swapped = list(same)
        swapped[a], swapped[b] = b, a
        rotations += [moved(patch, swapped, (a,)), moved(patch, swapped, (b,))]
    every_flip = itertools.chain.from_iterable(
        itertools.combinations(mirror_axes, number) for number in range(len(mirror_axes) + 1)
    )
    images = [moved(r, same, flips) for flips in every_flip for r in rotations]
    return {tuple(image.flatten().tolist()) for image in images}


@pytest.mark.parametrize("case", CASES)
def test_patches_become_all_that_the_rule_allows_and_nothing_else(case):
    size, spacing, mirror_axes = CASES[case]
    patch = torch.arange(float(torch.tensor(size).prod())).view(size)
    torch.manual_seed(0)
    patches = patch.expand(400, 1, *size)
    view = SpatialView(patches, spacing, mirror_axes)
    images = {tuple(image.flatten().tolist()) for image in view(patches)}
    assert images == reachable(patch, spacing, mirror_axes)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int16, torch.bool])
def test_undoing_gives_the_input_to_the_bit(case, dtype):
    size, spacing, mirror_axes = CASES[case]
    torch.manual_seed(0)
    patches = (100 * torch.randn(8, 2, *size)).to(dtype)
    view = SpatialView(patches, spacing, mirror_axes)
    for there, back in ((view, view.undo), (view.undo, view)):
        restored = back(there(patches))
        assert restored.dtype == dtype and torch.equal(restored, patches)


def test_what_belongs_together_stays_together():
    torch.manual_seed(0)
    image = torch.randn(8, 1, 16, 16)
    view = SpatialView(image, (1.0, 1.0), (0, 1))
    label = (image > 0).to(torch.int16)
    assert torch.equal(view(label), (view(image) > 0).to(torch.int16))
    # at another resolution: the mean of four voxels goes where they go
    coarse = torch.nn.functional.avg_pool2d(image, 2)
    torch.testing.assert_close(view(coarse), torch.nn.functional.avg_pool2d(view(image), 2))
    # and a label turned at full resolution is that of the turned image everywhere
    scales = [[1, 1], [0.5, 0.5]]
    for ours, of_image in zip(
        at_every_resolution(view(label), scales),
        at_every_resolution((view(image) > 0).to(torch.int16), scales),
        strict=True,
    ):
        assert torch.equal(ours, of_image)


def test_the_strong_view_is_seldom_the_weak_one():
    torch.manual_seed(0)
    patches = torch.randn(1, 1, 8, 8).expand(2000, 1, 8, 8)
    same = (SpatialView(patches, (1, 1), (0, 1))(patches) == patches).flatten(1).all(1)
    # half a turn (1/3), and both flips that undo it (1/4)
    assert same.float().mean().item() == pytest.approx(1 / 12, abs=0.025)  # four sigma


def test_gradients_come_back_to_where_they_belong():
    torch.manual_seed(0)
    patches = torch.randn(4, 1, 6, 6, requires_grad=True)
    weight = torch.randn(4, 1, 6, 6)
    view = SpatialView(patches, (1, 1), (0, 1))
    (view(patches) * weight).sum().backward()
    assert torch.equal(patches.grad, view.undo(weight))


def test_the_seed_decides():
    patches = torch.randn(8, 1, 8, 8)
    torch.manual_seed(3)
    first = SpatialView(patches, (1, 1), (0, 1))(patches)
    torch.manual_seed(3)
    assert torch.equal(SpatialView(patches, (1, 1), (0, 1))(patches), first)


def test_an_empty_batch_stays_empty():
    patches = torch.zeros(0, 1, 8, 8)
    view = SpatialView(patches, (1, 1), (0, 1))
    assert view(patches).shape == view.undo(patches).shape == (0, 1, 8, 8)


def test_what_cannot_be_rotated_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        SpatialView(torch.zeros(1, 1, 8, 8), (1, 1, 1), (0, 1))
    torch.manual_seed(0)
    view = SpatialView(torch.zeros(32, 1, 8, 8), (1, 1), (0, 1))
    with pytest.raises(ValueError, match="by 90 degrees"):
        view(torch.zeros(32, 1, 8, 4))
