"""Connected components of pseudo-labels: what is not the largest, or not sure, is removed.

Components are those of nnU-Net's postprocessing: voxels that touch by a face, an edge or a corner.
They are found on the CPU, so patches on a GPU make one way there and back, and the GPU is waited
for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from acvl_utils.morphology.morphology_helper import (
    label_with_component_sizes,
    remove_all_but_largest_component,
)
from nnunetv2.evaluation.evaluate_predictions import region_or_label_to_mask
from torch import Tensor

from nnunetv2_plgcl.semisupervised.targets import foreground, foreground_masks, ignore_where
from nnunetv2_plgcl.separable import multiply_axes

# From a mask and the confidence in it, both (*spatial), the part of the mask that stays.
Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]


def largest(mask: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """The largest component, or several if none is larger. Source: nnU-Net's postprocessing; for
    pseudo-labels BCP (Bai et al., 2023)."""
    kept: np.ndarray = remove_all_but_largest_component(mask)
    return kept


def confident(threshold: float) -> Rule:
    """A rule: components of a mean confidence of at least ``threshold``. Source: ours. A false
    island is seldom as sure as a true structure, even where some of its voxels are."""

    def rule(mask: np.ndarray, confidence: np.ndarray) -> np.ndarray:
        labelled, sizes = label_with_component_sizes(mask)
        total = np.bincount(labelled.ravel(), confidence.ravel().astype(np.float64))
        kept = np.array([False, *(total[i] >= threshold * n for i, n in sizes.items())])
        return kept[labelled]

    return rule


def filter_patches(
    target: Tensor,
    probabilities: Tensor,
    rule: Rule,
    exclusive: bool,
    whole_foreground: bool = False,
    ignore: bool = False,
) -> Tensor:
    """Remove components from the pseudo-labels of patches, each patch by itself.

    Args:
        target: as ``targets.hard_target`` gives it, (B, C, *spatial); ignored voxels belong to no
            component.
        probabilities: (B, K, *spatial) that the target came from.
        rule: ``largest`` or ``confident(threshold)``.
        exclusive: classes exclude one another; otherwise regions.
        whole_foreground: components of all classes or regions together, otherwise of each. The
            confidence is then that of the voxel being foreground.
        ignore: removed voxels are ignored, in all regions; otherwise they become background, in
            the region that they are removed from.

    Returns:
        as ``target``.
    """
    if len(target) == 0:
        return target
    num_classes = probabilities.shape[1]
    masks_of = foreground if whole_foreground else foreground_masks
    masks = masks_of(target, num_classes, exclusive)
    removed_of_patches = []
    for of_patch, maps in zip(masks.cpu().numpy(), probabilities.cpu().numpy(), strict=True):
        sure = _confidences(maps, exclusive, whole_foreground)
        pairs = zip(of_patch, sure, strict=True)
        removed_of_patches.append(np.stack([mask & ~rule(mask, c) for mask, c in pairs]))
    removed = torch.from_numpy(np.stack(removed_of_patches)).to(target.device)
    if ignore:
        return ignore_where(target, removed.any(1, True), num_classes, exclusive)
    if exclusive:
        return target.masked_fill(removed.any(1, True), 0)
    regions, ignored = target[:, :num_classes], target[:, num_classes:]
    return torch.cat((regions & ~removed, ignored), 1)


def filter_volume(
    segmentation: np.ndarray,
    probabilities: np.ndarray,
    rule: Rule,
    labels_or_regions: Sequence[int | tuple[int, ...]],
    whole_foreground: bool = False,
    replacement: int = 0,
) -> np.ndarray:
    """Remove components from the segmentation of a whole volume, as nnU-Net's postprocessing does.

    Args:
        segmentation: label map (*spatial), integers.
        probabilities: (K, *spatial): of background and each label, or of each region.
        rule: ``largest`` or ``confident(threshold)``.
        labels_or_regions: nnU-Net's ``foreground_labels`` or ``foreground_regions``, in this
            order one after the other, each on what the one before has left.
        whole_foreground: components of all of them together, otherwise of each.
        replacement: label of removed voxels: background, or the ignore label.

    Returns:
        (*spatial), a copy.
    """
    exclusive = len(probabilities) > len(labels_or_regions)
    if whole_foreground:
        labels_or_regions = [tuple(np.unique(np.hstack(labels_or_regions)))]
    result = segmentation.copy()
    confidences = _confidences(probabilities, exclusive, whole_foreground)
    for which, confidence in zip(labels_or_regions, confidences, strict=True):
        mask = region_or_label_to_mask(result, which)
        result[mask & ~rule(mask, confidence)] = replacement
    return result


def near(mask: Tensor, margin: Sequence[int]) -> Tensor:
    """The voxels of a mask and those in a box around each of them.

    Args:
        mask: (B, C, *spatial), bool, 2 or 3 spatial axes.
        margin: voxels to each side, one number a spatial axis.

    Returns:
        as ``mask``.
    """
    boxes = []
    for length, reach in zip(mask.shape[2:], margin, strict=True):
        place = torch.arange(length, device=mask.device)
        boxes.append(((place[:, None] - place).abs() <= reach).float())
    return multiply_axes(mask.float(), boxes) > 0  # how many are near


def _confidences(
    probabilities: np.ndarray, exclusive: bool, whole_foreground: bool
) -> Iterable[np.ndarray]:
    """For each mask how probable it is, (*spatial)."""
    if not whole_foreground:
        return probabilities[1:] if exclusive else probabilities
    return [1 - probabilities[0] if exclusive else probabilities.max(0)]
