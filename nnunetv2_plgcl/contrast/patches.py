"""Candidate windows on a regular grid, and the statistics that guide the choice among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nnunetv2_plgcl.separable import multiply_axes

# A voxel belongs to a class from this confidence on (authors' code).
MASK_THRESHOLD = 0.5


@dataclass(frozen=True)
class WindowStatistics:
    """All candidate windows of one size: W windows on a regular grid, for B images, K classes.

    Attributes:
        start: (W, D) long, first voxel of each window, the last axis fastest.
        entropy: (B, K, W) mean Bernoulli entropy of the class confidence, bits, 0 to 1.
        confidence: (B, K, W) mean class confidence, 0 to 1.
        coverage: (B, K, W) share of the window's voxels with a confidence of at least 0.5.
        size: edge lengths (D,) in voxels, never longer than the image.
    """

    start: Tensor
    entropy: Tensor
    confidence: Tensor
    coverage: Tensor
    size: tuple[int, ...]

    def covered(self, share: float = 0.0) -> Tensor:
        """(B, K, W) bool: the class mask covers at least ``share`` of the window, and one voxel.

        Means are compared with half a voxel's tolerance, so rounding cannot decide.
        """
        volume = math.prod(self.size)
        return self.coverage > (max(math.ceil(share * volume), 1) - 0.5) / volume

    def uncovered(self) -> Tensor:
        """(B, K, W) bool: at least one voxel of the window lies outside the class mask."""
        return self.coverage < 1 - 0.5 / math.prod(self.size)


@dataclass(frozen=True)
class Windows:
    """N windows drawn for each of B images and K classes.

    Attributes:
        start: (B, K, N, D) long, first voxel of each window.
        positive: (B, K, N) bool, positive or negative of its class.
        valid: (B, K, N) bool, false where the class mask of that side is empty in the window, so
            that there is nothing to embed, and where there were fewer candidates than N.
        size: edge lengths (D,) in voxels.
        classes: (K,) long, which of a larger number of classes these are; None for all.
    """

    start: Tensor
    positive: Tensor
    valid: Tensor
    size: tuple[int, ...]
    classes: Tensor | None = None

    def first(self, number: int) -> Windows:
        """The first windows of each image and class."""
        start, positive, valid = (
            of_all[:, :, :number] for of_all in (self.start, self.positive, self.valid)
        )
        return replace(self, start=start, positive=positive, valid=valid)

    def count(self) -> Tensor:
        """(K,) long: valid positive windows per class, summed over the batch."""
        return (self.valid & self.positive).sum((0, 2))


def class_mask(confidence: Tensor) -> Tensor:
    """1 where the confidence is at least 0.5, else 0, at least float32; any shape. In place on a
    copy, since a comparison that makes booleans first takes six times as long on a CPU."""
    return _at_least_float32(confidence).clone().ge_(MASK_THRESHOLD)


def bernoulli_entropy(p: Tensor) -> Tensor:
    """Entropy of a yes-no decision with probability ``p``, element-wise (poster step 3, in bits).

    Args:
        p: probabilities of any shape. Rounding beyond [0, 1] is clamped; NaN stays NaN.

    Returns:
        Same shape, bits: exactly 0 at p = 0 and p = 1, largest with 1 at p = 1/2. At least
        float32; meant for use without gradient, which is infinite at both ends.
    """
    p = _at_least_float32(p).clamp(0, 1)
    return (_times_log2(p) + _times_log2(1 - p)).neg_()


def _times_log2(p: Tensor) -> Tensor:
    """p log p in bits, 0 at 0; in place on a copy, as memory costs a CPU more than logarithms."""
    return p.clamp(min=torch.finfo(p.dtype).tiny).log2_().mul_(p)


@torch.no_grad()
def window_statistics(
    confidence: Tensor,
    size: Sequence[int] | int,
    stride: Sequence[int] | int | None = None,
    certain: int = 0,
) -> WindowStatistics:
    """Mean entropy, confidence and coverage of all windows on a grid, by average pooling.

    The patch entropy is the poster's step 3; sliding a window over each class's confidence map
    follows the entropy-driven sampler beside the authors' code; the grid is ours. Windows start
    at 0, stride, 2 stride, ... and lie in the image: up to ``stride - 1`` voxels at its far end
    are in no window. A window longer than the image is cut to the image.

    Args:
        confidence: (B, K, *spatial), class probabilities in [0, 1], any number D of axes.
        size: edge length of a window in voxels, for all axes or one per axis.
        stride: step of the grid in voxels, likewise; a quarter of the edge by default.
        certain: how many images at the front have nothing but zeros and ones, as labels do: their
            entropy is 0 and their coverage is the mean confidence, without computing either.

    Raises:
        TypeError: ``confidence`` is not floating point.
        ValueError: wrong number of axes, or a size or stride below 1.
    """
    if not confidence.is_floating_point():
        raise TypeError(
            f"confidence must hold probabilities in floating point, got {confidence.dtype}. "
            f"One-hot encode label maps and convert them to float."
        )
    if confidence.ndim < 3:
        raise ValueError(
            f"confidence must have the axes (B, K, *spatial), got shape {tuple(confidence.shape)}."
        )
    image = tuple(confidence.shape[2:])
    edges = tuple(map(min, _per_axis(size, "size", len(image)), image))
    default = tuple(max(1, edge // 4) for edge in edges)
    steps = default if stride is None else _per_axis(stride, "stride", len(image))

    def means(maps: Tensor) -> Tensor:
        return average_pool(maps, edges, steps).flatten(2)

    mean, unsure = means(confidence), confidence[certain:]
    entropy = torch.cat((torch.zeros_like(mean[:certain]), means(bernoulli_entropy(unsure))))
    coverage = torch.cat((mean[:certain], means(class_mask(unsure))))
    return WindowStatistics(
        _grid(image, edges, steps, confidence.device), entropy, mean, coverage, edges
    )


def average_pool(maps: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Average pooling over the last D axes, one axis after the other.

    Sums of zeros and ones are exact. In float32 under autocast too; float64 stays.

    Args:
        maps: (..., *spatial), at least two axes.
        size: D edge lengths in voxels, none longer than its axis.
        stride: D steps in voxels.

    Returns:
        (..., *pooled), where an axis of length L keeps ``(L - size) // stride + 1`` values.
    """
    maps = _at_least_float32(maps)
    boxes = [
        _inside(length, edge, step, maps)
        for length, edge, step in zip(maps.shape[-len(size) :], size, stride, strict=True)
    ]
    with torch.autocast(maps.device.type, enabled=False):
        return multiply_axes(maps, boxes) / math.prod(size)


def every_window(statistics: WindowStatistics) -> Windows:
    """All candidates as positives of every class, for guides that need their embeddings first.

    Returns:
        Windows with N = W, in the order of ``statistics``, valid where the class has a voxel.
    """
    valid = statistics.covered()
    start = statistics.start.expand(*valid.shape, -1)
    return Windows(start, torch.ones_like(valid), valid, statistics.size)


def _per_axis(value: Sequence[int] | int, name: str, axes: int) -> tuple[int, ...]:
    values = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(values) != axes or min(values) < 1:
        raise ValueError(
            f"{name} must be one integer of at least 1, or one for each of the {axes} spatial "
            f"axes, got {value!r}."
        )
    return values


def _inside(length: int, edge: int, step: int, like: Tensor) -> Tensor:
    """(length, boxes): 1 for each voxel of an axis that lies in the box [n step, n step + edge)."""
    start = _starts(length, edge, step, like.device)
    offset = torch.arange(length, device=like.device)[:, None] - start
    return ((offset >= 0) & (offset < edge)).to(like.dtype)


def _grid(
    image: Sequence[int], size: Sequence[int], stride: Sequence[int], device: torch.device
) -> Tensor:
    axes = [
        _starts(length, edge, step, device)
        for length, edge, step in zip(image, size, stride, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)


def _starts(length: int, edge: int, step: int, device: torch.device) -> Tensor:
    """First voxels of the boxes along an axis."""
    return torch.arange(0, length - edge + 1, step, device=device)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
