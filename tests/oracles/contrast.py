"""References for ``nnunetv2_plgcl.contrast``: plain loops, slow and obvious."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def grid_starts(
    image: Sequence[int], size: Sequence[int], stride: Sequence[int]
) -> list[tuple[int, ...]]:
    axes = [
        [s for s in range(0, length, step) if s + edge <= length]
        for length, edge, step in zip(image, size, stride, strict=True)
    ]
    return list(itertools.product(*axes))


def box(start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(int(s), int(s) + e) for s, e in zip(start, size, strict=True))


def entropy_bits(p: float) -> float:
    return sum(-q * math.log2(q) for q in (p, 1 - p) if q > 0)


def window_means(
    confidence: Tensor, starts: Sequence[Sequence[int]], size: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean entropy, confidence and coverage (B, K, W) in float64, voxel by voxel."""
    result = torch.zeros(3, *confidence.shape[:2], len(starts), dtype=torch.float64)
    for b, k in itertools.product(*map(range, confidence.shape[:2])):
        for w, start in enumerate(starts):
            values = confidence[b, k][box(start, size)].flatten().tolist()
            result[0, b, k, w] = sum(map(entropy_bits, values)) / len(values)
            result[1, b, k, w] = sum(values) / len(values)
            result[2, b, k, w] = sum(v >= 0.5 for v in values) / len(values)
    return result[0], result[1], result[2]


def without_replacement_pairs(weight: Sequence[float]) -> dict[tuple[int, int], float]:
    """Probability of the ordered pair (first, second) of two draws without replacement."""
    total = sum(weight)
    return {
        (i, j): weight[i] / total * weight[j] / (total - weight[i])
        for i, j in itertools.permutations(range(len(weight)), 2)
    }


def masked_window_mean(
    features: Tensor,
    mask: Tensor,
    start: Sequence[int],
    size: Sequence[int],
) -> Tensor:
    """Weighted mean (C,) of the cells of ``features`` (C, *s), for one window of an image.

    A cell's weight is the share of its voxels in ``mask`` (*spatial) times the share of its
    voxels in the window. Cells hold whole voxels.
    """
    image, cells = mask.shape, features.shape[1:]
    scale = [length // n for length, n in zip(image, cells, strict=True)]
    window = torch.zeros(image)
    window[box(start, size)] = 1
    total, weight_sum = torch.zeros(features.shape[0]), 0.0
    for cell in itertools.product(*map(range, cells)):
        voxels = box([c * s for c, s in zip(cell, scale, strict=True)], scale)
        weight = mask[voxels].float().mean().item() * window[voxels].mean().item()
        total += weight * features[(slice(None), *cell)]
        weight_sum += weight
    return total / weight_sum


def masked_crop(
    image: Tensor, confidence: Tensor, start: Sequence[int], size: Sequence[int], positive: bool
) -> Tensor:
    """One crop (C, *size) of ``image`` (C, *spatial), blank outside its side of the class."""
    where = box(start, size)
    mask = (confidence[where] >= 0.5) == positive
    return image[(slice(None), *where)] * mask


class DequeMemory:
    """``collections.deque`` per class."""

    def __init__(self, num_classes: int, length: int) -> None:
        self.queues: list[deque[tuple[float, ...]]] = [
            deque(maxlen=length) for _ in range(num_classes)
        ]

    def enqueue(self, embeddings: Tensor, keep: Tensor) -> None:
        for b, k, n in itertools.product(*map(range, keep.shape)):
            if keep[b, k, n]:
                self.queues[k].append(tuple(embeddings[b, k, n].tolist()))


def _anchors(anchors: Tensor, mask: Tensor) -> Iterator[tuple[int, Tensor]]:
    for b, k, n in itertools.product(*map(range, mask.shape)):
        if mask[b, k, n]:
            yield k, anchors[b, k, n]


def info_nce(
    anchors: Tensor,
    anchor_mask: Tensor,
    positives: Tensor,
    positive_mask: Tensor,
    negatives: Tensor,
    negative_mask: Tensor,
    temperature: float,
) -> float:
    """Mean over anchors of the mean over positives, by ``math.exp`` in Python floats."""
    losses = []
    for k, f in _anchors(anchors, anchor_mask):
        pos = [float(f @ p) for p, m in zip(positives[k], positive_mask[k], strict=True) if m]
        neg = [float(f @ q) for q, m in zip(negatives[k], negative_mask[k], strict=True) if m]
        if pos and neg:
            against = sum(math.exp(s / temperature) for s in neg)
            terms = [math.exp(s / temperature) for s in pos]
            losses.append(sum(-math.log(t / (t + against)) for t in terms) / len(terms))
    return sum(losses) / len(losses) if losses else 0.0


def closed_form(
    anchors: Tensor,
    anchor_mask: Tensor,
    mean: Tensor,
    covariance: Tensor,
    present: Tensor,
    temperature: float,
    covariance_scale: float,
    num_negatives: float,
) -> float:
    losses = []
    for k, f in _anchors(anchors, anchor_mask):
        others = [j for j in range(len(mean)) if j != k and present[j]]
        if not present[k] or not others:
            continue

        def term(j: int, f: Tensor = f) -> float:
            spread = float(f @ covariance[j] @ f) * covariance_scale / (2 * temperature**2)
            return math.exp(float(f @ mean[j]) / temperature + spread)

        total = term(k) + num_negatives / len(others) * sum(map(term, others))
        losses.append(-float(f @ mean[k]) / temperature + math.log(total))
    return sum(losses) / len(losses) if losses else 0.0
