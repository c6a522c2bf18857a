import pytest
import torch

from nnunetv2_plgcl.semisupervised.mixing import (
    LARGEST_BOX,
    SMALLEST_BOX,
    BoxMix,
    CutMix,
    Mixup,
)
from nnunetv2_plgcl.semisupervised.targets import at_every_resolution


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


@pytest.mark.parametrize("spatial", [(15, 24), (7, 16, 12)])
def test_one_box_of_two_thirds_goes_both_ways(spatial):
    torch.manual_seed(0)
    labelled = torch.randn(200, 2, *spatial)
    unlabelled = torch.randn(200, 2, *spatial)
    mix = BoxMix(labelled)
    labelled_inside, unlabelled_inside = mix(unlabelled, labelled), mix(labelled, unlabelled)
    places = set()
    for image in range(200):
        where = (labelled_inside[image] == labelled[image]).all(0).nonzero()
        low, high = where.amin(0), where.amax(0) + 1
        edges = [int(length * 2 / 3) for length in spatial]
        assert (high - low).tolist() == edges and len(where) == torch.tensor(edges).prod()
        box = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
        expected, reverse = unlabelled[image].clone(), labelled[image].clone()
        expected[(slice(None), *box)] = labelled[image][(slice(None), *box)]
        reverse[(slice(None), *box)] = unlabelled[image][(slice(None), *box)]
        assert torch.equal(labelled_inside[image], expected)
        assert torch.equal(unlabelled_inside[image], reverse)
        places.add(tuple(low.tolist()))
    # every place along every axis, from one border to the other
    for axis, length in enumerate(spatial):
        all_places = set(range(length - int(length * 2 / 3) + 1))
        assert {place[axis] for place in places} == all_places


@pytest.mark.parametrize("spatial", [(16, 24), (8, 16, 12)])
def test_mixed_labels_are_the_same_at_every_resolution(spatial):
    torch.manual_seed(0)
    a = torch.randint(0, 4, (4, 1, *spatial), dtype=torch.int16)
    b = torch.randint(0, 4, (4, 1, *spatial), dtype=torch.int16)
    scales = [[1] * len(spatial), [0.5] * len(spatial), [0.25] * len(spatial)]
    mix = BoxMix(torch.zeros(4, 3, *spatial))
    of_mixed = at_every_resolution(mix(a, b), scales)
    pyramids = at_every_resolution(a, scales), at_every_resolution(b, scales)
    for expected, x, y in zip(of_mixed, *pyramids, strict=True):
        assert torch.equal(mix(x, y), expected) and expected.dtype == torch.int16


def test_sets_of_unequal_number_take_part_in_turn():
    labelled, unlabelled = patches(5, 1), 10 + patches(2, 1)
    mix = BoxMix(labelled)
    values = [set(patch.unique().tolist()) for patch in mix(labelled, unlabelled)]
    assert values == [{0, 10}, {1, 11}, {2, 10}, {3, 11}, {4, 10}]
    values = [set(patch.unique().tolist()) for patch in BoxMix(unlabelled)(unlabelled, labelled)]
    assert values == [{10, 0}, {11, 1}]


def test_box_of_an_empty_batch():
    empty = torch.zeros(0, 1, 8, 8)
    assert BoxMix(empty)(empty, empty).shape == (0, 1, 8, 8)
    assert BoxMix(empty)(empty[..., ::2], empty[..., ::2]).shape == (0, 1, 8, 4)


@pytest.mark.parametrize("spatial", [(6, 8), (4, 6, 8)])
def test_mixup_blends_each_patch_with_the_one_before(spatial):
    torch.manual_seed(0)
    images, maps = torch.rand(8, 1, *spatial), torch.rand(8, 3, *spatial).softmax(1)
    mix = Mixup(images, 0.2)
    assert ((mix.share >= 0) & (mix.share <= 1)).all()
    for before in (images, maps):
        after = mix(before)
        for i in range(8):
            share = mix.share[i].item()
            torch.testing.assert_close(after[i], (1 - share) * before[i] + share * before[i - 1])
    torch.testing.assert_close(mix(maps).sum(1), torch.ones(8, *spatial))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_of_mixup_follow_the_beta_distribution(alpha):
    torch.manual_seed(0)
    share = Mixup(torch.zeros(20000, 1, 1, 1), alpha).share
    assert share.mean().item() == pytest.approx(0.5, abs=0.012)  # four sigma
    assert share.var().item() == pytest.approx(1 / (8 * alpha + 4), rel=0.04)


def test_mixup_of_a_single_patch_and_of_none():
    one = torch.rand(1, 1, 8, 8)
    assert torch.equal(Mixup(one, 0.2)(one), one)
    assert Mixup(one[:0], 0.2)(one[:0]).shape == (0, 1, 8, 8)


@pytest.mark.parametrize("mixing", [BoxMix, lambda like: Mixup(like, 0.2)])
def test_the_seed_decides_on_boxes_and_blends(mixing):
    a, b = torch.rand(2, 4, 1, 16, 16)

    def mixed():
        torch.manual_seed(3)
        mix = mixing(a)
        return mix(a, b) if isinstance(mix, BoxMix) else mix(a)

    assert torch.equal(mixed(), mixed())
