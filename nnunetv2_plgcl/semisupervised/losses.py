"""How the student learns from the teacher: consistency (poster step 4), or nnU-Net's own loss."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor, nn

from nnunetv2_plgcl.semisupervised.targets import confidence, ignored_voxels, most_probable


def consistency_loss(
    student_logits: Tensor,
    teacher_probabilities: Tensor,
    hard: bool,
    exclusive: bool,
    threshold: float = 0.0,
    dice: nn.Module | None = None,
) -> Tensor:
    """Cross-entropy between the student's strong view and the teacher's weak view, in float32.

    Source: poster step 4, L_Reg; hard targets, the threshold and the Dice term are ours.

    Args:
        student_logits: (B, K, *spatial).
        teacher_probabilities: (B, K, *spatial), pixel-aligned with the logits, no gradient.
        hard: train towards the teacher's decision instead of its probabilities.
        exclusive: classes exclude one another (softmax); otherwise regions (sigmoid).
        threshold: a voxel where the teacher is less sure of its decision counts as zero loss; the
            mean still goes over all voxels, so an unsure teacher has less weight.
        dice: nnU-Net's soft Dice loss, added where given. It maps logits, a target of the same
            shape and a mask (B, 1, *spatial) to a scalar.

    Returns:
        scalar, the mean over batch and voxels (and over regions, where they do not exclude);
        zero for an empty batch, as in the warm-up.
    """
    if len(student_logits) == 0:
        return student_logits.float().sum()
    logits = student_logits.float()
    target = teacher_probabilities.detach().float()
    sure = confidence(target, exclusive) >= threshold
    if hard and exclusive:
        target = torch.zeros_like(target).scatter_(1, most_probable(target), 1)
    elif hard:
        target = (target > 0.5).float()
    if exclusive:
        per_voxel = F.cross_entropy(logits, target, reduction="none")[:, None]
    else:
        per_voxel = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    loss = torch.where(sure, per_voxel, 0).mean()
    return loss if dice is None else loss + dice(logits, target, loss_mask=sure)


def squared_consistency(
    probabilities: Tensor, target: Tensor, where: Tensor | None = None
) -> Tensor:
    """Mean squared difference of two predictions. Source: Mean Teacher (Tarvainen & Valpola, 2017).

    Args:
        probabilities: (B, K, *spatial), float32.
        target: likewise.
        where: (B, 1, *spatial) bool, voxels that take part; None for all.

    Returns:
        scalar, the mean over these voxels and the classes; zero where there are none.
    """
    squared = (probabilities - target) ** 2
    if where is None:
        return squared.sum() / max(squared.numel(), 1)
    return (squared * where).sum() / (squared.shape[1] * where.sum()).clamp(min=1)


def sigmoid_rampup(passed: float, length: float = 1.0) -> float:
    """Weight in [exp(-5), 1] that grows as exp(-5 (1 - progress)^2), as in Mean Teacher
    (Tarvainen & Valpola, 2017).

    Args:
        passed: of the ramp, in any unit; from its end on the weight is 1.
        length: of the ramp in that unit; 0 for no ramp.
    """
    progress = passed / length if length > 0 else 1.0
    return math.exp(-5 * (1 - min(max(progress, 0.0), 1.0)) ** 2)


def label_manager_with_ignore(trainer: nnUNetTrainer) -> LabelManager:
    """nnU-Net's label manager for the pseudo-labels of a training: where its dataset has no ignore
    label, they have one above the highest label. Source: ours."""
    manager = trainer.label_manager
    if manager.has_ignore_label:
        return manager
    labels = {**trainer.dataset_json["labels"], "ignore": int(max(manager.all_labels)) + 1}
    return trainer.plans_manager.get_label_manager({**trainer.dataset_json, "labels": labels})


def loss_with_ignore_label(trainer: nnUNetTrainer) -> nn.Module:
    """nnU-Net's own loss for targets with an ignore label, as pseudo-labels have it.

    A dataset without ignore label has a loss without one. This one is built by the trainer's own
    ``_build_loss`` as if the dataset had one, so Dice, cross-entropy, weights of deep supervision
    and what a subclass changes are the same. Where nothing is ignored it is ``trainer.loss``: for
    regions nnU-Net divides the cross-entropy by voxels and regions, but with an ignore label by
    voxels only; the weight that is set here undoes that. A batch that is ignored everywhere has no
    gradient. With labels, nnU-Net waits for the GPU once a resolution, to see whether there is
    anything to learn from. Source: nnU-Net 2.8.1; the use for pseudo-labels is ours.

    Args:
        trainer: initialised, or with all that ``_build_loss`` needs.

    Returns:
        maps logits and targets (``join_targets``) to a scalar, as ``trainer.loss`` does.
    """
    manager = trainer.label_manager
    if manager.has_ignore_label:
        return trainer.loss
    pretender = copy.copy(trainer)
    pretender.label_manager = label_manager_with_ignore(trainer)
    loss: nn.Module = pretender._build_loss()
    inner = loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
    if isinstance(inner, DC_and_BCE_loss):
        inner.weight_ce /= manager.num_segmentation_heads
    return loss


class WeightedDiceCrossEntropy(nn.Module):
    """nnU-Net's soft Dice plus cross-entropy, where each voxel has a weight in every sum.

    A voxel of weight 0 leaves the loss: the intersection, both sizes in Dice's denominator, and the
    mean of the cross-entropy. (BCP's public code kept it in the Dice of background until its issue
    25.) Ignored voxels have weight 0. With all weights equal it is nnU-Net's loss; with all of them
    0 it has no gradient. Nothing waits for a GPU. Source: nnU-Net 2.8.1; weights ours.

    Args:
        dice: nnU-Net's ``MemoryEfficientSoftDiceLoss``, whose ``loss_mask`` is the weight.
        exclusive: classes exclude one another; otherwise regions.
        weight_ce: of the cross-entropy, against Dice.
        weight_dice: of Dice.
    """

    def __init__(
        self, dice: nn.Module, exclusive: bool, weight_ce: float = 1.0, weight_dice: float = 1.0
    ) -> None:
        super().__init__()
        self.dice = dice
        self.exclusive = exclusive
        self.weight_ce = weight_ce
        self.weight_dice = weight_dice

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """
        Args:
            logits: (B, K, *spatial).
            target: labels (B, 1, *spatial), K or more to be ignored; or regions (B, K, *spatial),
                with the ignore mask as a last channel where there is one.
            weight: (B, 1, *spatial), 0 or more.

        Returns:
            scalar.
        """
        logits, num_classes = logits.float(), logits.shape[1]
        known = ~ignored_voxels(target, num_classes, self.exclusive)
        if self.exclusive:
            target = torch.where(known, target, 0)
            entropy = F.cross_entropy(logits, target[:, 0].long(), reduction="none")[:, None]
        else:
            target = target[:, :num_classes].float()
            of_regions = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
            entropy = of_regions.mean(1, True)
        weight = weight.float() * known
        mean_entropy = (entropy * weight).sum() / weight.sum().clamp_min(1e-8)
        dice = self.dice(logits, target, loss_mask=weight)
        return self.weight_ce * mean_entropy + self.weight_dice * dice


def weighted_loss(trainer: nnUNetTrainer) -> nn.Module:
    """``WeightedDiceCrossEntropy`` out of the parts of nnU-Net's own loss, under the same deep
    supervision.

    Args:
        trainer: initialised.

    Returns:
        maps logits, targets and weights to a scalar: lists with one entry a resolution where
        ``trainer.loss`` takes lists, tensors otherwise.

    Raises:
        NotImplementedError: the trainer's loss is not nnU-Net's Dice plus cross-entropy.
    """
    loss = trainer.loss
    inner = loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
    if not isinstance(inner, (DC_and_CE_loss, DC_and_BCE_loss)):
        raise NotImplementedError(
            f"Voxels are weighted in nnU-Net's Dice plus cross-entropy only, but "
            f"{type(trainer).__name__} trains with {type(inner).__name__}."
        )
    exclusive = isinstance(inner, DC_and_CE_loss)
    weight_ce = inner.weight_ce
    if not exclusive and inner.use_ignore_label:
        # nnU-Net then divides the cross-entropy by voxels, not by voxels and regions
        weight_ce = weight_ce * trainer.label_manager.num_segmentation_heads
    weighted = WeightedDiceCrossEntropy(inner.dc, exclusive, weight_ce, inner.weight_dice)
    if not isinstance(loss, DeepSupervisionWrapper):
        return weighted
    return DeepSupervisionWrapper(weighted, loss.weight_factors)
