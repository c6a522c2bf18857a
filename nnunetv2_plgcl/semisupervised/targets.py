"""What a network is trained towards: confidence maps (poster step 1) and hard pseudo-labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import (
    DownsampleSegForDSTransform,
)
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


def most_probable(probabilities: Tensor) -> Tensor:
    """(B, K, *spatial) to the class of each voxel, (B, 1, *spatial) long, the lowest where several
    are. As ``argmax``, which takes a CPU twenty times as long (PyTorch 2.13)."""
    last = probabilities.shape[1] - 1
    from_last = torch.arange(last, -1, -1, dtype=torch.int16, device=probabilities.device)
    is_highest = probabilities == probabilities.amax(1, True)
    from_last = is_highest * from_last.view(-1, *[1] * (probabilities.ndim - 2))
    return last - from_last.amax(1, True).long()


def class_shares(pseudo_label: Tensor, num_classes: int, exclusive: bool) -> Tensor:
    """Which share of the voxels is of each class. Source: ours.

    Args:
        pseudo_label: confidence maps (B, K, *spatial), or a hard one as ``hard_target`` gives it,
            (B, 1, *spatial) or for regions (B, K + 1, *spatial). B is at least 1.
        num_classes: K, the number of segmentation heads.
        exclusive: classes exclude one another; otherwise regions, decided at 0.5.

    Returns:
        float32, shares of all voxels: (K + 1,), the last of those that are not ignored, to which
        the classes add up; with regions (1 + K + 1,), first of the voxels in none.
    """
    soft = pseudo_label.shape[1] == num_classes
    target = most_probable(pseudo_label) if exclusive and soft else pseudo_label
    known = ~ignored_voxels(target, num_classes, exclusive)[:, 0]
    if exclusive:
        masks = [target[:, 0] == k for k in range(num_classes)]
    else:
        regions = target[:, :num_classes] > 0.5
        masks = [~regions.any(1) & known, *(regions & known[:, None]).unbind(1)]
    return torch.stack([mask.sum() for mask in (*masks, known)]) / known.numel()


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
        maps = _where_equal(target, torch.arange(num_classes, device=target.device)).float()
        ignored = target == ignore_label if ignore_label is not None else None
    else:
        maps = target[:, :num_classes].float()
        ignored = target[:, num_classes:].bool() if ignore_label is not None else None
    return maps if ignored is None else maps.masked_fill(ignored, UNKNOWN)


def normalised_entropy(probabilities: Tensor, exclusive: bool) -> Tensor:
    """How unsure a prediction is, as a share of the highest entropy there is: that of K classes,
    or of K regions, each of which is in or out. Source: UA-MT (Yu et al., 2019), whose public code
    takes the maximum of two classes for any number.

    Args:
        probabilities: (B, K, *spatial) in [0, 1].
        exclusive: classes exclude one another; otherwise regions.

    Returns:
        (B, 1, *spatial) in [0, 1].
    """
    surprise = torch.special.entr(probabilities)
    if exclusive:
        return surprise.sum(1, True) / math.log(probabilities.shape[1])
    return (surprise + torch.special.entr(1 - probabilities)).mean(1, True) / math.log(2)


def confidence(probabilities: Tensor, exclusive: bool) -> Tensor:
    """How sure a prediction is of its decision. Source: ours for regions, where a voxel is as sure
    as its least sure region.

    Args:
        probabilities: (B, K, *spatial) in [0, 1].
        exclusive: classes exclude one another; otherwise regions.

    Returns:
        (B, 1, *spatial), in [1 / K, 1] for classes and in [0.5, 1] for regions.
    """
    if exclusive:
        return probabilities.amax(1, True)
    return (0.5 + (probabilities - 0.5).abs()).amin(1, True)


def hard_target(probabilities: Tensor, exclusive: bool, threshold: float = 0.0) -> Tensor:
    """Pseudo-labels in the form of nnU-Net's targets, always with an ignore label.

    Labels of a dataset are known everywhere, pseudo-labels are not. So their ignore label is there
    even if the dataset has none: K, one above the highest label, as nnU-Net demands it. Of regions
    the ignore mask is the last channel. ``losses.loss_with_ignore_label`` is the loss for them.
    Source: nnU-Net's targets; the use for pseudo-labels is ours.

    Args:
        probabilities: (B, K, *spatial) in [0, 1].
        exclusive: classes exclude one another; otherwise regions.
        threshold: voxels where ``confidence`` is less are ignored.

    Returns:
        labels (B, 1, *spatial), int16; or regions and ignore mask (B, K + 1, *spatial), bool.
        Full resolution, see ``at_every_resolution``.
    """
    if exclusive:
        target = most_probable(probabilities).to(torch.int16)
    else:
        target = F.pad(probabilities > 0.5, [0, 0] * (probabilities.ndim - 2) + [0, 1])
    unsure = confidence(probabilities, exclusive) < threshold
    return ignore_where(target, unsure, probabilities.shape[1], exclusive)


def ignore_where(target: Tensor, where: Tensor, num_classes: int, exclusive: bool) -> Tensor:
    """A pseudo-label with more voxels ignored.

    Args:
        target: as ``hard_target`` gives it, (B, C, *spatial).
        where: (B, 1, *spatial), bool.
        num_classes: K, the number of segmentation heads.
        exclusive: classes exclude one another; otherwise regions.
    """
    if exclusive:
        return target.masked_fill(where, num_classes)
    regions, ignored = target[:, :num_classes], target[:, num_classes:]
    return torch.cat((regions & ~where, ignored | where), 1)


def background_where(probabilities: Tensor, where: Tensor, exclusive: bool) -> Tensor:
    """Confidence maps that say background, without doubt, in these voxels.

    Args:
        probabilities: (B, K, *spatial).
        where: (B, 1, *spatial), bool.
        exclusive: classes exclude one another, background first; otherwise regions, of which
            background is in none.
    """
    maps = probabilities.masked_fill(where, 0)
    if exclusive:
        maps[:, :1].masked_fill_(where, 1)
    return maps


def foreground_masks(target: Tensor, num_classes: int, exclusive: bool) -> Tensor:
    """Where each class or region is.

    Args:
        target: labels (B, 1, *spatial), or regions (B, K, *spatial) with or without an ignore mask
            as a last channel.
        num_classes: K, the number of segmentation heads.
        exclusive: labels, not regions.

    Returns:
        (B, F, *spatial), bool: F is K - 1 for labels, which leave out background, and K for
        regions. Ignored voxels are in none.
    """
    if not exclusive:
        return target[:, :num_classes].bool()
    return _where_equal(target, torch.arange(1, num_classes, device=target.device))


def foreground(target: Tensor, num_classes: int, exclusive: bool) -> Tensor:
    """(B, 1, *spatial), bool: what is in any of the ``foreground_masks`` of the same arguments."""
    if exclusive:
        return (target > 0) & (target < num_classes)
    masks = foreground_masks(target, num_classes, exclusive)
    # as any(1, True), which takes a CPU fifty times as long (PyTorch 2.13)
    return masks.view(torch.uint8).amax(1, True).bool()


def ignored_voxels(target: Tensor, num_classes: int, exclusive: bool) -> Tensor:
    """(B, 1, *spatial), bool: what a target is silent about. Arguments as in ``foreground_masks``;
    of labels those above the highest class."""
    if exclusive:
        return target >= num_classes
    return target[:, num_classes:].bool().any(1, True)


def at_every_resolution(
    target: Tensor, scales: Sequence[float | Sequence[float]] | None
) -> list[Tensor]:
    """A target at every resolution of deep supervision, by nnU-Net's own transform (nearest voxel).

    Args:
        target: (B, C, *spatial), full resolution.
        scales: as ``nnUNetTrainer._get_deep_supervision_scales`` gives them, the finest first;
            None without deep supervision.

    Returns:
        one (B, C, *s) a scale.
    """
    if scales is None:
        return [target]
    # the transform knows no batch, but any number of channels
    flat = DownsampleSegForDSTransform(list(scales))(segmentation=target.flatten(0, 1))
    return [t.unflatten(0, target.shape[:2]) for t in flat["segmentation"]]


def join_targets(labelled: list[Tensor], pseudo: list[Tensor]) -> list[Tensor]:
    """Targets of labelled and of unlabelled patches as those of one batch, so that one call of the
    loss pools its Dice over both.

    Args:
        labelled: nnU-Net's targets, one a resolution, (B, C, *s); regions get an ignore mask,
            nowhere true, if the dataset has no ignore label.
        pseudo: as many from ``at_every_resolution``, (B', C', *s).

    Returns:
        one (B + B', C', *s) a resolution.
    """
    joined = []
    for label, pseudo_label in zip(labelled, pseudo, strict=True):
        missing = pseudo_label.shape[1] - label.shape[1]
        label = F.pad(label, [0, 0] * (label.ndim - 2) + [0, missing])
        joined.append(torch.cat((label, pseudo_label)))
    return joined


def _where_equal(labels: Tensor, classes: Tensor) -> Tensor:
    """(B, 1, *spatial) and (C,) to (B, C, *spatial), bool."""
    return labels == classes.view(-1, *[1] * (labels.ndim - 2))
