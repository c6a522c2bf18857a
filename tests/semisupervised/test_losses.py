import itertools
import math

import pytest
import torch
from bare import bare_trainer
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss

from nnunetv2_plgcl.semisupervised.losses import (
    consistency_loss,
    loss_with_ignore_label,
    sigmoid_rampup,
    weighted_loss,
)
from nnunetv2_plgcl.semisupervised.targets import (
    at_every_resolution,
    class_probabilities,
    hard_target,
    ignore_where,
    join_targets,
)


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


def resolutions(trainer, batch=2, exclusive=True, axes=2, seed=0):
    """Logits at each resolution and a hard target, both random."""
    generator = torch.Generator().manual_seed(seed)
    heads = trainer.label_manager.num_segmentation_heads
    logits = [
        torch.randn(batch, heads, *[16 // 2**i] * axes, generator=generator, requires_grad=True)
        for i in range(3)
    ]
    maps = torch.randn(batch, heads, *[16] * axes, generator=generator)
    target = hard_target(class_probabilities(2 * maps, exclusive), exclusive)
    return logits, target


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("exclusive", [True, False])
def test_loss_with_ignore_label_is_nnunets_where_nothing_is_ignored(exclusive, batch_dice, axes):
    trainer = bare_trainer(exclusive, batch_dice=batch_dice, axes=axes)
    logits, target = resolutions(trainer, exclusive=exclusive, axes=axes)
    known = target if exclusive else target[:, :-1]
    scales = trainer._get_deep_supervision_scales()
    ours = loss_with_ignore_label(trainer)(logits, at_every_resolution(target, scales))
    nnunets = trainer.loss(logits, at_every_resolution(known, scales))
    torch.testing.assert_close(ours, nnunets)


@pytest.mark.parametrize("exclusive", [True, False])
def test_ignored_voxels_do_not_reach_the_loss(exclusive):
    trainer = bare_trainer(exclusive, deep_supervision=False)
    (logits, *_), target = resolutions(trainer, exclusive=exclusive)
    where = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1)) < 0.3
    loss_with_ignore = loss_with_ignore_label(trainer)
    loss = loss_with_ignore(logits, ignore_where(target, where, logits.shape[1], exclusive))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.equal(gradient.abs().sum(1, keepdim=True) > 0, ~where)
    # the same as of the known voxels alone, here in one long row
    row = logits.movedim(1, -1)[~where[:, 0]].T[None, :, None]
    known = (target if exclusive else target[:, :-1]).movedim(1, -1)[~where[:, 0]].T[None, :, None]
    torch.testing.assert_close(loss, trainer.loss(row, known))


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("exclusive", [True, False])
def test_patches_that_are_ignored_everywhere_add_nothing(exclusive, batch_dice):
    trainer = bare_trainer(exclusive, batch_dice=batch_dice)
    logits, target = resolutions(trainer, exclusive=exclusive)
    scales = trainer._get_deep_supervision_scales()
    everywhere = torch.ones_like(target[:, :1], dtype=torch.bool)
    heads = trainer.label_manager.num_segmentation_heads
    ignored = at_every_resolution(ignore_where(target, everywhere, heads, exclusive), scales)
    loss = loss_with_ignore_label(trainer)
    alone = loss(logits, ignored)
    alone.backward()
    assert alone.isfinite() and all(not x.grad.any() for x in logits if x.grad is not None)
    # beside labelled patches: as without them, if Dice is pooled over the batch
    known = at_every_resolution(target if exclusive else target[:, :-1], scales)
    pooled = loss([torch.cat((x, x.detach())) for x in logits], join_targets(known, ignored))
    of_pooled = torch.autograd.grad(pooled, logits[:2])
    if batch_dice:
        of_labelled = torch.autograd.grad(trainer.loss(logits, known), logits[:2])
        for a, b in zip(of_pooled, of_labelled, strict=True):
            torch.testing.assert_close(a, b)
    assert all(gradient.isfinite().all() for gradient in of_pooled)


def test_dice_of_joined_targets_is_pooled_over_labelled_and_unlabelled_patches():
    trainer = bare_trainer(exclusive=True, deep_supervision=False)
    (logits, *_), target = resolutions(trainer)
    (other, *_), pseudo = resolutions(trainer, seed=1)
    probabilities = torch.softmax(torch.cat((logits, other)), 1)
    labels = torch.cat((target, pseudo))
    dice, entropy, voxels = 0.0, 0.0, labels.numel()
    for k in (1, 2):
        both = total = 0.0
        for image, x, y in itertools.product(range(4), range(16), range(16)):
            p, is_k = probabilities[image, k, x, y].item(), labels[image, 0, x, y].item() == k
            both, total = both + p * is_k, total + p + is_k
        dice += (2 * both + 1e-5) / (total + 1e-5) / 2
    for image, x, y in itertools.product(range(4), range(16), range(16)):
        entropy -= math.log(probabilities[image, labels[image, 0, x, y].item(), x, y].item())
    (joined,) = join_targets([target], [pseudo])
    loss = loss_with_ignore_label(trainer)(torch.cat((logits, other)), joined)
    assert loss.item() == pytest.approx(entropy / voxels - dice, rel=1e-5)


def test_a_dataset_with_an_ignore_label_keeps_its_own_loss():
    trainer = bare_trainer(exclusive=True, ignore=True)
    assert loss_with_ignore_label(trainer) is trainer.loss
    without = bare_trainer(exclusive=True)
    assert loss_with_ignore_label(without) is not without.loss
    assert without.label_manager.ignore_label is None, "the trainer stays as it was"


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("ignore", [True, False])
@pytest.mark.parametrize("exclusive", [True, False])
def test_weighted_loss_is_nnunets_where_all_weights_are_equal(exclusive, ignore, batch_dice, axes):
    trainer = bare_trainer(exclusive, ignore, batch_dice, axes)
    logits, target = resolutions(trainer, exclusive=exclusive, axes=axes)
    heads = trainer.label_manager.num_segmentation_heads
    if ignore:
        where = torch.rand(2, 1, *[16] * axes, generator=torch.Generator().manual_seed(1)) < 0.3
        target = ignore_where(target, where, heads, exclusive)
    elif not exclusive:
        target = target[:, :heads]
    targets = at_every_resolution(target, trainer._get_deep_supervision_scales())
    nnunets = trainer.loss(logits, targets)
    of_nnunets = torch.autograd.grad(nnunets, logits[:2])
    for value in (1.0, 0.5):
        weights = [torch.full_like(t[:, :1], value, dtype=torch.float32) for t in targets]
        ours = weighted_loss(trainer)(logits, targets, weights)
        torch.testing.assert_close(ours, nnunets)
        of_ours = torch.autograd.grad(ours, logits[:2])
        for a, b in zip(of_ours, of_nnunets, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("exclusive", [True, False])
def test_every_sum_of_the_weighted_loss_goes_over_weighted_voxels(exclusive, batch_dice):
    trainer = bare_trainer(exclusive, batch_dice=batch_dice, deep_supervision=False)
    (logits, *_), target = resolutions(trainer, exclusive=exclusive)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(0, 3, (2, 1, 16, 16), generator=generator) / 2  # 0, 0.5 and 1
    heads = trainer.label_manager.num_segmentation_heads
    ignored = torch.rand(2, 1, 16, 16, generator=generator) < 0.2
    target = ignore_where(target, ignored, heads, exclusive)
    probabilities = class_probabilities(logits, exclusive).detach()
    foreground = range(1, heads) if exclusive else range(heads)
    sums = {}  # intersection, prediction and truth of each class, and of each image without pooling
    entropy = total = 0.0
    for image, x, y in itertools.product(range(2), range(16), range(16)):
        if ignored[image, 0, x, y]:
            continue
        w = weight[image, 0, x, y].item()
        total += w
        if exclusive:
            entropy -= w * math.log(probabilities[image, target[image, 0, x, y].item(), x, y])
        for k in foreground:
            p = probabilities[image, k, x, y].item()
            if exclusive:
                is_k = target[image, 0, x, y].item() == k
            else:
                is_k = target[image, k, x, y].item()
                entropy -= w * math.log(p if is_k else 1 - p) / heads
            both, predicted, true = sums.get((k, batch_dice or image), (0, 0, 0))
            sums[k, batch_dice or image] = both + w * p * is_k, predicted + w * p, true + w * is_k
    dice = [(2 * both + 1e-5) / (p + t + 1e-5) for both, p, t in sums.values()]
    loss = weighted_loss(trainer)(logits, target, weight)
    assert loss.item() == pytest.approx(entropy / total - sum(dice) / len(dice), rel=1e-5)


@pytest.mark.parametrize("exclusive", [True, False])
def test_voxels_of_weight_zero_leave_the_loss(exclusive):
    """BCP's public code keeps them in the denominator of Dice."""
    trainer = bare_trainer(exclusive, deep_supervision=False)
    (logits, *_), target = resolutions(trainer, exclusive=exclusive)
    weight = (torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    loss = weighted_loss(trainer)(logits, target, weight)
    inside = weight[:, 0] > 0
    row = logits.movedim(1, -1)[inside].T[None, :, None]
    known = (target if exclusive else target[:, :-1]).movedim(1, -1)[inside].T[None, :, None]
    torch.testing.assert_close(loss, trainer.loss(row, known))
    nothing = weighted_loss(trainer)(logits, target, torch.zeros_like(weight))
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert nothing.isfinite() and not gradient.any()


def test_weights_for_another_loss_are_refused():
    trainer = bare_trainer(exclusive=True)
    trainer.loss = RobustCrossEntropyLoss()
    with pytest.raises(NotImplementedError, match="RobustCrossEntropyLoss"):
        weighted_loss(trainer)
