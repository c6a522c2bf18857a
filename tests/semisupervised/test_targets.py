import pytest
import torch

from nnunetv2_plgcl.semisupervised.targets import (
    UNKNOWN,
    class_probabilities,
    label_probabilities,
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
