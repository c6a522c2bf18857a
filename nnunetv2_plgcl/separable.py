"""Linear operations on images that separate into one along each axis."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def multiply_axes(maps: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply each of the last D axes by a matrix of its own, the last axis first.

    The cost grows with the sum of the edges, not with their product. Source: ours.

    Args:
        maps: (..., *spatial), at least two axes.
        matrices: D, (length, new length).

    Returns:
        (..., *new lengths).
    """
    for matrix in reversed(matrices):
        # Matrix times maps, as a product with few columns takes a CPU twice as long. Each axis
        # moves to the front when done, which restores their order.
        maps = (matrix.mT @ maps.mT).movedim(-2, -len(matrices))
    return maps
