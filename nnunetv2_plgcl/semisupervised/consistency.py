"""Poster step 4: the student's strong view learns from the teacher's weak view."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def consistency_loss(
    student_logits: Tensor, teacher_probabilities: Tensor, hard: bool, exclusive: bool
) -> Tensor:
    """Cross-entropy between the student's strong view and the teacher's weak view, in float32.

    Source: poster step 4, L_Reg; hard targets are ours.

    Args:
        student_logits: (B, K, *spatial).
        teacher_probabilities: (B, K, *spatial), pixel-aligned with the logits, no gradient.
        hard: train towards the teacher's decision instead of its probabilities.
        exclusive: classes exclude one another (softmax); otherwise regions (sigmoid).

    Returns:
        scalar, the mean over batch and voxels (and over regions, where they do not exclude);
        zero for an empty batch, as in the warm-up.
    """
    if len(student_logits) == 0:
        return student_logits.float().sum()
    logits = student_logits.float()
    target = teacher_probabilities.detach().float()
    if exclusive:
        return F.cross_entropy(logits, target.argmax(1) if hard else target)
    return F.binary_cross_entropy_with_logits(logits, (target > 0.5).float() if hard else target)


def sigmoid_rampup(progress: float) -> float:
    """Weight in [exp(-5), 1] that grows as exp(-5 (1 - progress)^2), as in Mean Teacher
    (Tarvainen & Valpola, 2017).

    Args:
        progress: share of the ramp that has passed; 1 from its end on.
    """
    return math.exp(-5 * (1 - min(max(progress, 0.0), 1.0)) ** 2)
