"""A strong view that moves voxels: rotations by right angles and flips, undone without a trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor

SAME_SPACING = 0.01  # spacings that differ by less than a percent are equal (ours)


class SpatialView:
    """Rotates and flips each patch of a batch, by chance and one by one.

    Each patch is rotated in one plane, drawn from those of equal edge and equal spacing, by 90, 180
    or 270 degrees; where no plane is so, by 180 degrees in any. Then it is flipped along each axis
    with probability 1/2. What nnU-Net does not mirror is not turned over: a rotation needs both
    axes of its plane, for by 180 degrees it is two flips. With fewer than two axes only flips are
    left, with none the patches stay as they are.

    The same object turns all that belongs to the patches: images, labels, probabilities, of any
    resolution whose edges are equal where the patches' are. Turn a label before
    ``at_every_resolution``: the voxel nearest to a cell's centre is another one after a flip.
    Voxels are moved and never interpolated, so ``undo`` is exact. Randomness is torch's, on the
    CPU; nothing waits for a GPU. Source: rotations and flips nnFilterMatch (2025) and TCSM (Li et
    al., 2018); the rule for planes is ours.

    Args:
        like: (B, C, *spatial), for number and size of the patches.
        spacing: of a voxel along each spatial axis, in mm.
        mirror_axes: spatial axes that nnU-Net mirrors for this data, as its
            ``configure_rotation_dummyDA_mirroring_and_inital_patch_size`` returns them.

    Raises:
        ValueError: spacing and patches differ in their number of axes.
    """

    def __init__(
        self, like: Tensor, spacing: Sequence[float], mirror_axes: Sequence[int] | None
    ) -> None:
        edges = like.shape[2:]
        if len(spacing) != len(edges):
            raise ValueError(f"Spacing {tuple(spacing)} does not fit patches of {tuple(edges)}.")
        axes = sorted(mirror_axes or ())
        planes = list(combinations(axes, 2))
        square = [
            (a, b)
            for a, b in planes
            if edges[a] == edges[b] and math.isclose(spacing[a], spacing[b], rel_tol=SAME_SPACING)
        ]
        self._moves = [_draw(square, planes, axes) for _ in range(len(like))]

    def __call__(self, patches: Tensor) -> Tensor:
        """Turn (B, C, *spatial) of any resolution.

        Raises:
            ValueError: a plane that is square in the patches is not at this resolution.
        """

        def turn(patch: Tensor, quarters: int, plane: tuple[int, int], flips: list[int]) -> Tensor:
            return torch.rot90(patch, quarters, plane).flip(flips)

        return self._each(patches, turn)

    def undo(self, patches: Tensor) -> Tensor:
        """The inverse of ``__call__``, to the bit."""

        def turn(patch: Tensor, quarters: int, plane: tuple[int, int], flips: list[int]) -> Tensor:
            return torch.rot90(patch.flip(flips), -quarters, plane)

        return self._each(patches, turn)

    def _each(self, patches: Tensor, turn: Callable[..., Tensor]) -> Tensor:
        if len(patches) == 0:
            return patches
        turned = [turn(p, *move) for p, move in zip(patches, self._moves, strict=True)]
        if any(t.shape != patches.shape[1:] for t in turned):
            raise ValueError(f"Cannot rotate patches of {tuple(patches.shape[2:])} by 90 degrees.")
        return torch.stack(turned)


def _draw(
    square: list[tuple[int, int]], planes: list[tuple[int, int]], axes: list[int]
) -> tuple[int, tuple[int, int], list[int]]:
    """Quarters of a turn, its plane, and the axes of flips; axis 0 is the channel."""
    quarters, plane = 0, (0, 1)
    if planes:
        quarters = 1 + _below(3) if square else 2
        a, b = (square or planes)[_below(len(square or planes))]
        plane = a + 1, b + 1
    return quarters, plane, [axis + 1 for axis in axes if _below(2)]


def _below(number: int) -> int:
    return int(torch.randint(number, ()))
