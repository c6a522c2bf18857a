import copy

import pytest
import torch
from bare import small_unet
from torch import nn

from nnunetv2_plgcl.semisupervised.perturbation import FeatureDropout
from nnunetv2_plgcl.semisupervised.teacher import EMATeacher


def by_hand(network, images, masks):
    skips = network.encoder(images)
    return network.decoder([skip * mask for skip, mask in zip(skips, masks, strict=True)])


def assert_same(outputs, expected):
    for a, b in zip(outputs, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("axes", "residual", "backend"),
    [(2, False, None), (3, False, None), (2, True, None), (2, False, "eager")],
)
def test_the_decoder_works_on_masked_features_while_switched_on(axes, residual, backend):
    torch.manual_seed(0)
    network = small_unet(axes, residual=residual)
    images = torch.randn(5, 1, *[16] * axes)
    whole = network(images)
    run = torch.compile(network, backend=backend) if backend else network
    dropout = FeatureDropout(network)
    masks = dropout.masks(images[3:])
    with_whole = [torch.cat((torch.ones_like(m[:1]).expand(3, *m.shape[1:]), m)) for m in masks]
    expected = by_hand(network, images, with_whole)
    for _ in range(2):  # switching must outlive what is compiled
        torch.testing.assert_close(run(images), whole)
        with dropout.on(masks, whole=3):
            outputs = run(images)
        torch.testing.assert_close(outputs, expected)
        assert not torch.equal(outputs[0][3:], whole[0][3:])
        torch.testing.assert_close(outputs[0][:3], whole[0][:3])


def test_passes_outside_are_the_networks_own_to_the_bit():
    torch.manual_seed(0)
    network = small_unet(2)
    images = torch.randn(2, 1, 16, 16)
    before = network(images)
    keys = list(network.state_dict())
    dropout = FeatureDropout(network)
    with dropout.on(dropout.masks(images)):
        network(images)
    assert_same(network(images), before)
    assert list(network.state_dict()) == keys


def test_a_pass_that_fails_leaves_it_switched_off():
    network = small_unet(2)
    images = torch.randn(2, 1, 16, 16)
    before = network(images)
    dropout = FeatureDropout(network)
    with pytest.raises(RuntimeError), dropout.on(dropout.masks(images)):
        network(torch.randn(3, 1, 16, 16))  # two masks for three samples
    assert_same(network(images), before)


@pytest.mark.parametrize("copied_while_on", [False, True])
def test_a_copied_teacher_keeps_all_features(copied_while_on):
    torch.manual_seed(0)
    network = small_unet(2)
    images = torch.randn(2, 1, 16, 16)
    before = network(images)
    dropout = FeatureDropout(network)
    masks = dropout.masks(images)
    if copied_while_on:
        with dropout.on(masks):
            teacher = EMATeacher(network, 0.9)
    else:
        teacher = EMATeacher(copy.deepcopy(network), 0.9)
    with dropout.on(masks):
        assert_same(teacher(images), before)
        assert not torch.equal(network(images)[0], before[0])


@pytest.mark.parametrize("axes", [2, 3])
def test_masks_drop_whole_channels_and_keep_the_mean(axes):
    torch.manual_seed(0)
    dropout = FeatureDropout(small_unet(axes))
    masks = dropout.masks(torch.zeros(500, 1, *[16] * axes), 0.2)
    assert [m.shape for m in masks] == [(500, c, *[1] * axes) for c in (4, 6, 8, 10)]
    for mask in masks:
        assert set(mask.flatten().tolist()) == {0, 1.25}
        assert (mask == 0).float().mean().item() == pytest.approx(0.2, abs=0.036)  # four sigma


@pytest.mark.parametrize("number", [1, 2, 5, 8])
def test_complementary_masks_leave_half_of_the_samples_whole(number):
    torch.manual_seed(0)
    dropout = FeatureDropout(small_unet(2))
    first, second = dropout.complementary_masks(torch.zeros(number, 1, 16, 16))
    whole = [all((mask[i] == 1).all() for mask in first) for i in range(number)]
    assert sum(whole) == number // 2
    for m, n in zip(first, second, strict=True):
        for i in range(number):
            for a, b in zip(m[i].flatten().tolist(), n[i].flatten().tolist(), strict=True):
                assert (a, b) == (1, 1) if whole[i] else (a, b) in [(0, 2), (2, 0)]


def test_two_sets_of_masks_take_one_pass():
    torch.manual_seed(0)
    network = small_unet(2)
    labelled, strong = torch.randn(3, 1, 16, 16), torch.randn(2, 1, 16, 16)
    dropout = FeatureDropout(network)
    first, second = dropout.complementary_masks(strong)
    with dropout.on(first, second, whole=3):
        logits = network(torch.cat((labelled, strong, strong)))[0]
    torch.testing.assert_close(logits[:3], network(labelled)[0])
    torch.testing.assert_close(logits[3:5], by_hand(network, strong, first)[0])
    torch.testing.assert_close(logits[5:], by_hand(network, strong, second)[0])


def test_the_seed_decides():
    dropout = FeatureDropout(small_unet(2))
    like = torch.zeros(4, 1, 16, 16)
    torch.manual_seed(3)
    expected = [*dropout.masks(like), *dropout.complementary_masks(like)[0]]
    torch.manual_seed(3)
    assert_same([*dropout.masks(like), *dropout.complementary_masks(like)[0]], expected)


def test_a_network_without_such_an_encoder_is_refused():
    with pytest.raises(NotImplementedError, match="Linear has no encoder"):
        FeatureDropout(nn.Linear(1, 1))
