import math

import pytest
import torch

from nnunetv2_plgcl.semisupervised.losses import consistency_loss, sigmoid_rampup


def logits_and_probabilities(seed=0, spatial=(3, 4)):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, *spatial, generator=generator)
    target = torch.softmax(torch.randn(2, 3, *spatial, generator=generator), 1)
    return logits, target


@pytest.mark.parametrize("spatial", [(3, 4), (2, 3, 4)])
@pytest.mark.parametrize("hard", [False, True])
def test_softmax_consistency_is_the_mean_cross_entropy_over_voxels(hard, spatial):
    logits, target = logits_and_probabilities(spatial=spatial)
    flat_logits = logits.movedim(1, -1).reshape(-1, 3)
    flat_target = target.movedim(1, -1).reshape(-1, 3)
    total = 0.0
    for voxel_logits, voxel_target in zip(flat_logits.tolist(), flat_target.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(v) for v in voxel_logits))
        if hard:
            voxel_target = [float(v == max(voxel_target)) for v in voxel_target]
        total -= sum(t * (v - log_sum) for t, v in zip(voxel_target, voxel_logits, strict=True))
    loss = consistency_loss(logits, target, hard=hard, exclusive=True)
    assert loss.item() == pytest.approx(total / len(flat_logits), rel=1e-5)


@pytest.mark.parametrize("hard", [False, True])
def test_region_consistency_is_the_mean_binary_cross_entropy(hard):
    logits, target = logits_and_probabilities()
    total = 0.0
    for value, goal in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-value))
        goal = float(goal > 0.5) if hard else goal
        total -= goal * math.log(p) + (1 - goal) * math.log(1 - p)
    loss = consistency_loss(logits, target, hard=hard, exclusive=False)
    assert loss.item() == pytest.approx(total / logits.numel(), rel=1e-5)


@pytest.mark.parametrize("exclusive", [True, False])
def test_voxels_below_the_threshold_weigh_nothing(exclusive):
    logits, target = logits_and_probabilities()
    logits.requires_grad_()
    threshold = 0.6
    consistency_loss(logits, target, False, exclusive, threshold).backward()
    least_sure = target.amax(1) if exclusive else torch.maximum(target, 1 - target).amin(1)
    assert torch.equal(logits.grad.abs().sum(1) > 0, least_sure >= threshold)
    # and the others as without a threshold: the mean goes over all voxels
    kept = logits.grad.clone()
    logits.grad = None
    consistency_loss(logits, target, False, exclusive).backward()
    sure = (least_sure >= threshold)[:, None].expand_as(kept)
    torch.testing.assert_close(kept[sure], logits.grad[sure])


@pytest.mark.parametrize("hard", [False, True])
def test_dice_term_is_nnunets_with_the_same_target_and_mask(hard):
    logits, target = logits_and_probabilities()
    seen = {}

    def dice(x, y, loss_mask):
        seen.update(y=y, mask=loss_mask)
        return x.sum()

    loss = consistency_loss(logits, target, hard, True, 0.5, dice)
    plain = consistency_loss(logits, target, hard, True, 0.5)
    torch.testing.assert_close(loss, plain + logits.sum())
    expected = torch.nn.functional.one_hot(target.argmax(1), 3).movedim(-1, 1) if hard else target
    torch.testing.assert_close(seen["y"], expected.float())
    assert torch.equal(seen["mask"], target.amax(1, keepdim=True) >= 0.5)


def test_no_gradient_reaches_the_teacher():
    logits, target = logits_and_probabilities()
    logits.requires_grad_(), target.requires_grad_()
    consistency_loss(logits, target, hard=False, exclusive=True).backward()
    assert target.grad is None and logits.grad.abs().sum() > 0


def test_an_empty_batch_costs_nothing_and_keeps_the_graph():
    logits = torch.zeros(0, 3, 4, 4, requires_grad=True)
    loss = consistency_loss(logits, torch.zeros(0, 3, 4, 4), hard=False, exclusive=True)
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None


def test_half_precision_logits_are_computed_in_float32():
    logits, target = logits_and_probabilities()
    loss = consistency_loss(logits.half(), target, hard=False, exclusive=True)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("progress", "weight"),
    [(-1, math.exp(-5)), (0, math.exp(-5)), (0.5, math.exp(-1.25)), (1, 1.0), (7, 1.0)],
)
def test_rampup_follows_mean_teacher(progress, weight):
    assert sigmoid_rampup(progress) == pytest.approx(weight)
