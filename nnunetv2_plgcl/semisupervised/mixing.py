"""CutMix between the unlabelled patches of a batch (Yun et al., 2019; French et al., 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_BOX, LARGEST_BOX = 0.25, 0.75  # edge of the box, as a share of the patch's edge (ours)


class CutMix:
    """One box of some patches is replaced by the same box of the patch before them in the batch.

    The same object mixes everything that belongs to the patches: the strong view that the
    student sees, the teacher's probabilities of the weak view, and feature maps, so all stay
    aligned. Feature maps are mixed at their own resolution: a cell lies in the box where its centre
    does. Randomness is torch's, on the device; nothing waits for a GPU.

    Args:
        like: (B, C, *spatial), for shape and device.
        probability: share of patches that get a box, 0 to 1.
    """

    def __init__(self, like: Tensor, probability: float) -> None:
        number, spatial, device = len(like), like.shape[2:], like.device
        axes = len(spatial)
        mask = torch.rand(number, *[1] * (axes + 1), device=device) < probability
        for axis, length in enumerate(spatial):
            low, share = torch.rand(2, number, *[1] * (axes + 1), device=device)
            share = SMALLEST_BOX + share * (LARGEST_BOX - SMALLEST_BOX)
            low = low * (1 - share)
            shape = [length if a == axis else 1 for a in range(axes)]
            centre = (torch.arange(length, device=device).view(shape) + 0.5) / length
            mask = mask & (centre >= low) & (centre < low + share)
        self.mask = mask
        self._never = probability == 0

    def __call__(self, patches: Tensor) -> Tensor:
        """Mix (B, C, *spatial) of any resolution."""
        if self._never or len(patches) == 0:
            return patches
        mask = self.mask
        if patches.shape[2:] != mask.shape[2:]:
            mask = F.interpolate(mask.float(), patches.shape[2:], mode="nearest-exact") > 0.5
        return torch.where(mask, patches.roll(1, 0), patches)
