"""Signed distances to the surface of each class, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from nnunetv2_plgcl.semisupervised.targets import foreground_masks


def signed_distances(
    target: Tensor, num_classes: int, exclusive: bool, spacing: Sequence[float]
) -> Tensor:
    """How far each voxel is from the surface of each foreground class or region.

    The distance of two voxels is that of their centres. Inside it is the distance to the nearest
    voxel outside, negative, outside that to the nearest inside; each side is divided by its largest
    value in the patch. Where a patch lacks a class there is no surface, and the map is 0; where
    it is nothing but this class, -1. Ignored voxels count as outside of every class. By scipy, on
    the CPU: a GPU is waited for. Source: DTC (Luo et al., 2021), for one class; one map a class is
    ours, and DTC sets the outermost voxels inside to 0, where here the sign tells the label.

    Args:
        target: labels (B, 1, *spatial), or regions (B, K, *spatial) with or without an ignore mask
            as a last channel.
        num_classes: K, the number of segmentation heads.
        exclusive: labels, not regions.
        spacing: of a voxel along each spatial axis, in any unit.

    Returns:
        (B, F, *spatial) in [-1, 1], float32, on the target's device; F is K - 1 for labels, as
        background has no map, and K for regions.
    """
    masks = foreground_masks(target, num_classes, exclusive)
    flat = masks.flatten(0, 1).cpu().numpy()
    maps = np.zeros(flat.shape, np.float32)
    for mask, distances in zip(flat, maps, strict=True):
        distances[:] = _signed_distance(mask, spacing)
    return torch.from_numpy(maps).to(target.device).view(masks.shape)


def distances_to_probabilities(distances: Tensor, sharpness: float) -> Tensor:
    """A soft map of signed distances: above 0.5 inside, below outside. Source: DTC.

    Args:
        distances: (B, F, *spatial) in [-1, 1], predicted.
        sharpness: k of sigmoid(-k z).
    """
    return torch.sigmoid(-sharpness * distances)


def _signed_distance(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray | float:
    if mask.all():
        return -1.0
    if not mask.any():
        return 0.0
    inside, outside = (distance_transform_edt(side, sampling=spacing) for side in (mask, ~mask))
    return outside / outside.max() - inside / inside.max()
