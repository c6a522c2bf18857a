"""Two patches in one: objects that mix everything that belongs to the patches in the same way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_BOX, LARGEST_BOX = 0.25, 0.75  # edge of CutMix's box, as a share of the patch's (ours)
BOX_ACROSS_SETS = 2 / 3  # the same share for BoxMix (BCP)


class CutMix:
    """One box of some patches is replaced by the same box of the patch before them in the batch
    (Yun et al., 2019; French et al., 2020).

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
        mask = _resized(self.mask, patches.shape[2:])
        return torch.where(mask, patches.roll(1, 0), patches)


class BoxMix:
    """One box a pair of patches, of two thirds of each edge, at a random place: copy-paste between
    labelled and unlabelled patches in both directions (BCP; Bai et al., 2023).

    ``mix(unlabelled, labelled)`` has the labelled patch inside the box, ``mix(labelled,
    unlabelled)`` the unlabelled one. The same object mixes images, labels, weights and feature
    maps, each at its own resolution: a cell lies in the box where its centre does, so a mixed label
    at a coarser resolution is the mixed label of that resolution. Randomness is torch's, on the
    device; nothing waits for a GPU.

    Args:
        like: (B, C, *spatial), for number of pairs, shape and device.
    """

    def __init__(self, like: Tensor) -> None:
        number, spatial, device = len(like), like.shape[2:], like.device
        axes = len(spatial)
        mask = torch.ones(number, *[1] * (axes + 1), dtype=torch.bool, device=device)
        for axis, length in enumerate(spatial):
            edge = max(1, int(length * BOX_ACROSS_SETS))
            low = torch.randint(length - edge + 1, (number, *[1] * (axes + 1)), device=device)
            shape = [length if a == axis else 1 for a in range(axes)]
            place = torch.arange(length, device=device).view(shape)
            mask = mask & (place >= low) & (place < low + edge)
        self.mask = mask

    def __call__(self, outside: Tensor, inside: Tensor) -> Tensor:
        """(B, C, *s) of any resolution. Either set may have another number of patches: they take
        part in turn, the first ones again where there are too few, the last ones never where there
        are too many."""
        number = len(self.mask)
        mask = _resized(self.mask, outside.shape[2:])
        return torch.where(mask, _in_turn(inside, number), _in_turn(outside, number))


def copy_paste(images: Tensor, target: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Labelled patches with a box of the patch before them in the batch, by ``BoxMix``: the
    warm-up of BCP (Bai et al., 2023).

    Args:
        images: (B, C, *spatial).
        target: nnU-Net's, one a resolution, (B, C, *s) each.
    """
    mix = BoxMix(images)
    return mix(images, images.roll(1, 0)), [mix(t, t.roll(1, 0)) for t in target]


class Mixup:
    """Blends each patch with the patch before it in the batch (Zhang et al., 2018; for unlabelled
    patches ICT, Verma et al., 2019).

    The same object blends images and the teacher's probabilities: with lambda from Beta(alpha,
    alpha), one for each patch, they become (1 - lambda) of themselves plus lambda of the one
    before. Not for labels. Randomness is torch's, on the device; nothing waits for a GPU.

    Args:
        like: (B, C, *spatial), for number and device.
        alpha: above 0; the smaller, the closer are most blends to one of the two.
    """

    def __init__(self, like: Tensor, alpha: float) -> None:
        shape = torch.full((len(like), *[1] * (like.ndim - 1)), alpha, device=like.device)
        # validation would look at the values
        self.share = torch.distributions.Beta(shape, shape, validate_args=False).sample()

    def __call__(self, patches: Tensor) -> Tensor:
        """Blend (B, C, *spatial) of any resolution, floating point."""
        return torch.lerp(patches, patches.roll(1, 0), self.share.to(patches.dtype))


def _resized(mask: Tensor, spatial: Sequence[int]) -> Tensor:
    """(B, 1, *spatial) at another resolution, where a cell is what the voxel at its centre is."""
    if mask.shape[2:] == torch.Size(spatial):
        return mask
    if len(mask) == 0:  # interpolate wants at least one
        return mask.new_empty(0, 1, *spatial)
    return F.interpolate(mask.float(), tuple(spatial), mode="nearest-exact") > 0.5


def _in_turn(patches: Tensor, number: int) -> Tensor:
    if len(patches) == number:
        return patches
    return patches[torch.arange(number, device=patches.device) % len(patches)]
