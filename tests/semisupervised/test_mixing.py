import pytest
import torch

from nnunetv2_plgcl.semisupervised.mixing import LARGEST_BOX, SMALLEST_BOX, CutMix


def patches(number=64, channels=2, spatial=(16, 24)):
    return (
        torch.arange(float(number))
        .view(number, 1, *[1] * len(spatial))
        .expand(number, channels, *spatial)
    )


@pytest.mark.parametrize("spatial", [(16, 24), (8, 16, 12)])
def test_one_box_of_the_patch_before_is_pasted_into_every_channel(spatial):
    torch.manual_seed(0)
    before = patches(spatial=spatial)
    after = CutMix(before, probability=1.0)(before)
    for index, patch in enumerate(after):
        assert set(patch.unique().tolist()) == {float(index), float((index - 1) % len(before))}
        pasted = patch != index
        assert (pasted == pasted[:1]).all()
        where = pasted[0].nonzero()
        edges = where.amax(0) - where.amin(0) + 1
        assert len(where) == edges.prod()  # a full box
        for edge, length in zip(edges.tolist(), spatial, strict=True):
            assert SMALLEST_BOX * length - 1 <= edge <= LARGEST_BOX * length + 1


def test_share_of_mixed_patches_is_the_probability():
    torch.manual_seed(0)
    before = patches(number=2000, channels=1)
    changed = (CutMix(before, probability=0.3)(before) != before).flatten(1).any(1)
    assert changed.float().mean().item() == pytest.approx(0.3, abs=0.04)  # four sigma
    assert torch.equal(CutMix(before, probability=0.0)(before), before)


def test_everything_mixed_by_one_object_stays_aligned():
    torch.manual_seed(0)
    image = torch.rand(4, 1, 32, 48)
    label = (image > 0.5).float()
    mix = CutMix(image, probability=1.0)
    assert torch.equal((mix(image) > 0.5).float(), mix(label))
    coarse = mix(patches(4, 1, (8, 12)))
    at_centres = mix(patches(4, 1, (32, 48)))[:, :, 2::4, 2::4]
    assert torch.equal(coarse, at_centres)


def test_a_single_patch_and_an_empty_batch_stay_as_they_are():
    one = torch.rand(1, 1, 8, 8)
    assert torch.equal(CutMix(one, 1.0)(one), one)
    assert CutMix(one[:0], 1.0)(one[:0]).shape == (0, 1, 8, 8)


def test_the_seed_decides():
    image = torch.rand(4, 1, 16, 16)
    torch.manual_seed(3)
    first = CutMix(image, 0.5)(image)
    torch.manual_seed(3)
    assert torch.equal(CutMix(image, 0.5)(image), first)
