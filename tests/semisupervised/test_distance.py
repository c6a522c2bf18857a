import itertools
import math

import pytest
import torch

from nnunetv2_plgcl.semisupervised.distance import distances_to_probabilities, signed_distances


def by_hand(mask, spacing):
    """Nearest voxel of the other side for each voxel, by trying all."""
    voxels = list(itertools.product(*[range(n) for n in mask.shape]))
    result = torch.zeros(mask.shape)
    for here in voxels:
        result[here] = min(
            math.dist(
                [i * s for i, s in zip(here, spacing, strict=True)],
                [i * s for i, s in zip(there, spacing, strict=True)],
            )
            for there in voxels
            if mask[there] != mask[here]
        )
    outside, inside = result * ~mask, result * mask
    return outside / outside.max() - inside / inside.max()


def labels(spatial, classes=3):
    noise = torch.randn(2, classes, *spatial, generator=torch.Generator().manual_seed(0))
    pool = torch.nn.functional.avg_pool2d if len(spatial) == 2 else torch.nn.functional.avg_pool3d
    return pool(noise, 3, stride=1, padding=1)


@pytest.mark.parametrize(
    ("spatial", "spacing"), [((7, 9), (1, 1)), ((7, 9), (1.5, 0.7)), ((3, 5, 6), (5, 1, 1))]
)
@pytest.mark.parametrize("exclusive", [True, False])
def test_distances_are_those_to_the_nearest_voxel_of_the_other_side(exclusive, spatial, spacing):
    noise = labels(spatial)
    target = noise.argmax(1, True).to(torch.int16) if exclusive else noise > 0
    maps = signed_distances(target, 3, exclusive, spacing)
    masks = torch.stack([target[:, 0] == k for k in (1, 2)], 1) if exclusive else target
    assert maps.shape == masks.shape and maps.dtype == torch.float32
    for image, number in itertools.product(range(2), range(masks.shape[1])):
        mask = masks[image, number]
        torch.testing.assert_close(maps[image, number], by_hand(mask, spacing))
    assert maps.min() == -1 and maps.max() == 1
    assert torch.equal(maps < 0, masks), "the sign tells the label"
    assert torch.equal(distances_to_probabilities(maps, 1500) > 0.5, masks)


def test_patches_without_a_class_and_full_of_it():
    target = torch.zeros(1, 1, 4, 4, dtype=torch.int16)
    assert not signed_distances(target, 3, True, (1, 1)).any()
    full = signed_distances(target + 2, 3, True, (1, 1))
    assert not full[0, 0].any() and (full[0, 1] == -1).all()


def test_ignored_voxels_are_outside():
    target = torch.tensor([[1, 1, 3, 0]]).view(1, 1, 1, 4)
    maps = signed_distances(target, 3, True, (1, 1))
    assert maps[0, 0].tolist() == [[-1, -0.5, 0.5, 1]]
    regions = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.bool).view(1, 2, 1, 4)
    assert torch.equal(signed_distances(regions, 1, False, (1, 1)), maps[:, :1])


def test_the_soft_map_is_dtcs():
    z = torch.tensor([-1.0, -1e-3, 0.0, 1e-3, 1.0])
    expected = [1 / (1 + math.exp(min(1500 * v, 700))) for v in z.tolist()]
    assert distances_to_probabilities(z, 1500).tolist() == pytest.approx(expected, abs=1e-6)
