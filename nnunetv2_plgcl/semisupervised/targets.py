"""Poster step 1: a confidence map per class, from the teacher or from the label."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Just below the 0.5 that makes a voxel part of a class, and of the highest entropy there is:
# windows over ignored voxels are hardly ever drawn.
UNKNOWN = 0.4999


def class_probabilities(logits: Tensor, exclusive: bool) -> Tensor:
    """Confidence maps of a prediction, float32. Source: poster step 1.

    Args:
        logits: (B, K, *spatial).
        exclusive: classes exclude one another (softmax); otherwise regions (sigmoid).
    """
    return torch.softmax(logits.float(), 1) if exclusive else torch.sigmoid(logits.float())


def label_probabilities(
    target: Tensor, num_classes: int, exclusive: bool, ignore_label: int | None
) -> Tensor:
    """Confidence maps of a label: 1 where the class is, 0 elsewhere, float32. Source: poster
    step 1; ignored voxels are ours.

    Args:
        target: nnU-Net's target at full resolution: labels (B, 1, *spatial), or regions
            (B, K, *spatial) with the ignore mask as a last channel where there is one.
        num_classes: K, the number of segmentation heads.
        exclusive: labels, not regions.
        ignore_label: its value (labels) or anything but None (regions).

    Returns:
        (B, K, *spatial); ``UNKNOWN`` in every class where the label is to be ignored.
    """
    if exclusive:
        labels = target[:, 0].long()
        ignored = labels == ignore_label if ignore_label is not None else None
        # the ignore label is the highest: one more class, cut off again
        one_hot = F.one_hot(labels, num_classes + (ignored is not None))
        maps = one_hot.movedim(-1, 1)[:, :num_classes].float()
        ignored = ignored[:, None] if ignored is not None else None
    else:
        maps = target[:, :num_classes].float()
        ignored = target[:, num_classes:].bool() if ignore_label is not None else None
    return maps if ignored is None else maps.masked_fill(ignored, UNKNOWN)
