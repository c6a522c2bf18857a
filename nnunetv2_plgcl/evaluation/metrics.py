"""DSC, HD95, ASD and ASSD of two masks, as MedPy 0.5 defines them. Source: the poster's metrics.

Surfaces are the voxels of a mask that touch its outside by a face; beyond the image's edge is
outside. Distances run between voxel centres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances of two masks' surfaces.

    Attributes:
        to_reference: from each surface voxel of the prediction to the reference's surface.
        to_prediction: from each surface voxel of the reference to the prediction's surface.
    """

    to_reference: np.ndarray
    to_prediction: np.ndarray

    def hd95(self) -> float:
        """95th percentile of the distances of both directions together."""
        return float(np.percentile(np.hstack((self.to_reference, self.to_prediction)), 95))

    def asd(self) -> float:
        """Average surface distance from the prediction to the reference, one direction only."""
        return float(self.to_reference.mean())

    def assd(self) -> float:
        """Average symmetric surface distance: the mean over both directions together."""
        return float(np.hstack((self.to_reference, self.to_prediction)).mean())


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float] | None = None
) -> SurfaceDistances:
    """Distances between the surfaces of two masks.

    Everything is computed inside the box that holds both masks: what lies outside is background,
    and a distance transform there would change nothing. Axes of a single voxel do not count, so
    that a slice has an outline and not a surface of all its voxels.

    Args:
        prediction, reference: bool, same shape, neither empty.
        spacing: edge lengths of a voxel along the axes, in mm; None for distances in voxels.

    Raises:
        ValueError: shapes differ, or a mask is empty.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"Shapes differ: {prediction.shape} and {reference.shape}.")
    sampling = np.ones(prediction.ndim) if spacing is None else np.asarray(spacing, dtype=float)
    axes = [axis for axis, length in enumerate(prediction.shape) if length > 1]
    flat = tuple(axis for axis, length in enumerate(prediction.shape) if length == 1)
    masks = [np.squeeze(mask.astype(bool), axis=flat) for mask in (prediction, reference)]
    if not all(mask.any() for mask in masks):
        raise ValueError("A mask is empty: it has no surface.")
    box = _bounding_box(masks[0] | masks[1])
    masks = [mask[box] for mask in masks]
    surfaces = [mask & ~binary_erosion(mask) for mask in masks]
    of_prediction, of_reference = (
        distance_transform_edt(~surface, sampling=sampling[axes]) for surface in surfaces
    )
    return SurfaceDistances(of_reference[surfaces[0]], of_prediction[surfaces[1]])


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        along = mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis))
        inside = np.flatnonzero(along)
        box.append(slice(inside[0], inside[-1] + 1))
    return tuple(box)
