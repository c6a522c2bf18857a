"""Poster step 4: the student's strong view learns from the teacher's weak view."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
    confidence = target.amax(1, True) if exclusive else (0.5 + (target - 0.5).abs()).amin(1, True)
    sure = confidence >= threshold
    if hard and exclusive:
        target = torch.zeros_like(target).scatter_(1, target.argmax(1, True), 1)
    elif hard:
        target = (target > 0.5).float()
    if exclusive:
        per_voxel = F.cross_entropy(logits, target, reduction="none")[:, None]
    else:
        per_voxel = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    loss = torch.where(sure, per_voxel, 0).mean()
    return loss if dice is None else loss + dice(logits, target, loss_mask=sure)


def sigmoid_rampup(passed: float, length: float = 1.0) -> float:
    """Weight in [exp(-5), 1] that grows as exp(-5 (1 - progress)^2), as in Mean Teacher
    (Tarvainen & Valpola, 2017).

    Args:
        passed: of the ramp, in any unit; from its end on the weight is 1.
        length: of the ramp in that unit; 0 for no ramp.
    """
    progress = passed / length if length > 0 else 1.0
    return math.exp(-5 * (1 - min(max(progress, 0.0), 1.0)) ** 2)
