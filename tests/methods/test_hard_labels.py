"""BCP, self-training and UniMatch: images and pseudo-labels stay aligned through turns and mixes,
and the loss is what the papers add up, voxel by voxel."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
from bare import bare_trainer

from nnunetv2_plgcl.semisupervised.losses import loss_with_ignore_label, weighted_loss
from nnunetv2_plgcl.semisupervised.mixing import BoxMix
from nnunetv2_plgcl.semisupervised.step import UnlabelledBatch
from nnunetv2_plgcl.trainers.methods.nnUNetTrainerBCP import BCPSettings, nnUNetTrainerBCP
from nnunetv2_plgcl.trainers.methods.nnUNetTrainerSelfTraining import (
    SelfTrainingSettings,
    nnUNetTrainerSelfTraining,
)
from nnunetv2_plgcl.trainers.methods.nnUNetTrainerUniMatch import (
    UniMatchSettings,
    nnUNetTrainerUniMatch,
)

SIZE = 16
WEAK = torch.rand(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
IMAGES = torch.rand(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def logits_of(patches: torch.Tensor, sureness: float = 50.0) -> torch.Tensor:
    """Three classes by intensity, voxel by voxel, so they move with the image."""
    centres = torch.tensor([1 / 6, 3 / 6, 5 / 6]).view(1, 3, 1, 1)
    return -sureness * (patches - centres).abs()


def labels_of(patches: torch.Tensor) -> torch.Tensor:
    return logits_of(patches).argmax(1, True).to(torch.int16)


def step(trainer_class, settings, strong_views, exclusive=True):
    """What one step of the second stage reports when the student computes ``logits_of``."""
    trainer = bare_trainer(exclusive, deep_supervision=False)
    trainer.__class__ = trainer_class
    trainer.config = settings
    trainer.is_ddp = False
    trainer.current_epoch, trainer.num_epochs, trainer.iteration_in_epoch = 9, 10, 0
    trainer.num_iterations_per_epoch, trainer.planned_batch_size = 10, 8
    trainer.configuration_manager.configuration["spacing"] = [1.0, 1.0]
    trainer.inference_allowed_mirroring_axes = (0, 1)
    trainer.loss_with_ignore = loss_with_ignore_label(trainer)
    trainer.weighted_loss = weighted_loss(trainer)
    trainer.labelled_batch = lambda batch: (IMAGES, [labels_of(IMAGES)])
    trainer.unlabelled_batch = lambda like: UnlabelledBatch(WEAK, (WEAK,) * strong_views, [])
    trainer.pseudo_label = lambda patches: logits_of(patches).softmax(1)
    trainer.student_logits = lambda images: [logits_of(images)]
    trainer.optimise = lambda loss: None
    trainer.update_teacher = lambda: None
    trainer.finish_step = lambda **losses: losses
    return trainer


def loss_by_loops(logits, labels, weights):
    """Batch Dice of both foreground classes and cross-entropy, weighted."""
    entropy = total = 0.0
    overlap, size = [0.0] * 3, [0.0] * 3
    for b, y, x in torch.cartesian_prod(*map(torch.arange, labels[:, 0].shape)).tolist():
        p = logits[b, :, y, x].softmax(0).tolist()
        label, weight = int(labels[b, 0, y, x]), float(weights[b, 0, y, x])
        entropy -= weight * math.log(p[label])
        total += weight
        for k in range(3):
            overlap[k] += weight * p[k] * (k == label)
            size[k] += weight * (p[k] + (k == label))
    dice = sum((2 * overlap[k] + 1e-5) / (size[k] + 1e-5) for k in (1, 2)) / 2
    return entropy / total - dice


@pytest.mark.parametrize("weight", [0.5, 1.0, 0.0])
def test_bcp_exchanges_boxes_and_weighs_pseudo_labels(weight):
    settings = BCPSettings(pseudo_label_weight=weight, patch_filter="none")
    trainer = step(nnUNetTrainerBCP, settings, 0)
    wrong = labels_of(WEAK).roll(1, 2)  # so that the pseudo-label's weight shows in the loss
    trainer.clean_label = lambda probabilities: wrong
    torch.manual_seed(3)
    loss = trainer.train_step({})["loss"].item()

    torch.manual_seed(3)
    mask = BoxMix(WEAK).mask
    edge = int(SIZE * 2 / 3)
    assert mask.sum() == 4 * edge**2
    images, labels, labelled = [], [], []
    for inside_is_labelled in (True, False):
        for b in range(4):
            takes_labelled = mask[b] == inside_is_labelled
            images.append(torch.where(takes_labelled, IMAGES[b], WEAK[b]))
            labels.append(torch.where(takes_labelled, labels_of(IMAGES)[b], wrong[b]))
            labelled.append(takes_labelled.float())
    images, labels, labelled = map(torch.stack, (images, labels, labelled))
    of_labels, of_pseudo = (
        loss_by_loops(logits_of(images), labels, part) for part in (labelled, 1 - labelled)
    )
    assert of_labels < 0.1 * of_pseudo  # or the weight would not show
    assert loss == pytest.approx((of_labels + weight * of_pseudo) / (1 + weight), abs=1e-5)


def test_bcp_pastes_among_labelled_patches_in_warm_up():
    trainer = step(nnUNetTrainerBCP, BCPSettings(), 0)
    trainer.current_epoch = 0
    seen = []
    trainer.student_logits = lambda images: [seen.append(images) or logits_of(images)]
    loss = trainer.train_step({})["loss"].item()
    (mixed,) = seen
    for b in range(4):
        of_other = mixed[b] == IMAGES[b - 1]
        assert of_other.sum() == int(SIZE * 2 / 3) ** 2
        assert torch.equal(torch.where(of_other, IMAGES[b - 1], IMAGES[b]), mixed[b])
    aligned = loss_by_loops(logits_of(mixed), labels_of(mixed), torch.ones(4, 1, SIZE, SIZE))
    assert loss == pytest.approx(aligned, abs=1e-5)


def test_bcp_keeps_the_largest_component_of_each_class():
    trainer = step(nnUNetTrainerBCP, BCPSettings(), 0)
    probabilities = torch.zeros(1, 3, SIZE, SIZE)
    probabilities[:, 0] = 0.9
    for k, (y, x), edge in ((1, (0, 0), 4), (1, (10, 10), 2), (2, (0, 10), 3), (2, (13, 0), 2)):
        probabilities[:, :, y : y + edge, x : x + edge] = 0.05
        probabilities[:, k, y : y + edge, x : x + edge] = 0.9
    label = trainer.clean_label(probabilities)
    assert [(label == k).sum().item() for k in (1, 2)] == [16, 9]
    assert not label[0, 0, 10:, :].any()


@pytest.mark.parametrize("source", ["teacher", "student"])
@pytest.mark.parametrize("view", ["weak", "strong"])
def test_self_training_turns_image_and_label_alike(view, source):
    settings = SelfTrainingSettings(rotated_view=view, label_source=source)
    trainer = step(nnUNetTrainerSelfTraining, settings, int(view == "strong"))
    trainer.strong_views = int(view == "strong")
    seen = []

    def student(images):
        seen.append(images)
        return [logits_of(images, 5.0)]

    trainer.student_logits = student
    loss = trainer.train_step({})["loss"].item()
    assert not torch.equal(seen[-1][4:], WEAK)
    assert torch.equal(seen[-1][4:].flatten(1).sort().values, WEAK.flatten(1).sort().values)
    # a sum over voxels does not see in which order they come
    images = torch.cat((IMAGES, WEAK))
    expected = loss_by_loops(
        logits_of(images, 5.0), labels_of(images), torch.ones(8, 1, SIZE, SIZE)
    )
    assert loss == pytest.approx(expected, abs=1e-5)


class Whole:
    """Stands in for the channel dropout of a network that is not there."""

    def complementary_masks(self, like):
        return [], []

    def on(self, *masks, whole):
        assert whole == len(IMAGES)
        return nullcontext()


@pytest.mark.parametrize("threshold", [0.0, 0.95])
def test_unimatch_holds_both_mixed_views_to_the_mixed_label(threshold):
    settings = UniMatchSettings(confidence_threshold=threshold, cutmix_probability=1.0)
    trainer = step(nnUNetTrainerUniMatch, settings, 2)
    trainer.feature_dropout = Whole()
    seen = []

    def student(images):
        seen.append(images)
        return [logits_of(images, 5.0)]

    trainer.student_logits = student
    consistency = trainer.train_step({})["loss_consistency"].item()
    views = seen[0][4:]
    assert len(views) == 8 and not torch.equal(views[:4], views[4:])
    assert not torch.equal(views[:4], WEAK)
    sure = logits_of(views).softmax(1).amax(1, True) >= threshold
    assert sure.all() == (threshold == 0)
    expected = loss_by_loops(logits_of(views, 5.0), labels_of(views), sure.float())
    assert consistency == pytest.approx(expected, abs=1e-5)
