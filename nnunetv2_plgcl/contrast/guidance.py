"""Which windows are drawn, and whether as positives or negatives: one interface, four guides."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributed as dist

from nnunetv2_plgcl.contrast.patches import MASK_THRESHOLD, Windows, WindowStatistics

# No window is impossible to draw (entropy-driven sampler beside the authors' code).
SMALLEST_WEIGHT = 1e-3
# Share of a window that a class must cover to qualify in the second reading (ours).
QUALIFYING_COVERAGE = 0.25
# Entropies (bits) and cosines closer than this are a tie, broken at random.
TIE = 1e-6


class Guide(Protocol):
    """Chooses ``num`` windows for each image and class among the candidates.

    A guide with ``two_sided`` draws positives and negatives. Without, all are positives, and
    negatives of a class are the positives of the others (``ClassMemory.of_other_classes``).

    Args:
        statistics: of all W candidates.
        num: N, windows to draw for each image and class.
        similarity: (B, K, W), cosine of each candidate's embedding with the mean embedding of
            the class. Used where ``needs_similarity`` is true, ignored elsewhere.
        generator: source of randomness, on the device of the statistics.

    Returns:
        N windows for each image and class. Where there are fewer candidates than N the rest is
        invalid, as are windows without a voxel of their side (nothing to embed) and windows with
        a NaN in their statistics, which are all windows of a map with a NaN.

    Raises:
        ValueError: ``num`` below 1; a similarity that is needed and missing, or misshapen.
    """

    needs_similarity: bool
    two_sided: bool

    def __call__(
        self,
        statistics: WindowStatistics,
        num: int,
        similarity: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Windows: ...


class TwoSidedGuide:
    """What guides that draw positives and negatives share.

    Args:
        balanced: draw as many positives as negatives of each class (one more of an odd number),
            each side with the probabilities that its windows have under the guide's rule. By the
            rule alone nearly every window of a small structure is a negative, and nearly every
            anchor background. Source: ours.
    """

    needs_similarity = False
    two_sided = True

    def __init__(self, balanced: bool = False) -> None:
        self.balanced = balanced


class EntropyGuide(TwoSidedGuide):
    """Draws where the network is sure, either way; confidence says on which side.

    Windows are drawn without replacement with probability proportional to max(1 - h, 0.001), h
    the mean entropy in bits. A drawn window is a positive of its class with probability c, the
    mean confidence, else a negative. First reading of poster step 3, which names entropy but no
    rule; the rule is that of the entropy-driven sampler beside the authors' code.

    Degenerate maps: where all windows are equally sure or unsure, the draw is uniform. An absent
    class (confidence 0) yields negatives only, a class that fills the image positives only. With
    confidence 1/2 everywhere the class mask is full, and drawn negatives are invalid. A class of
    one voxel makes a valid positive only of windows that hold the voxel. A window as large as the
    image is the only candidate, and the other N - 1 are invalid. Balanced, an absent class has no
    positive, and a window may be drawn once for each side.
    """

    @torch.no_grad()
    def __call__(
        self,
        statistics: WindowStatistics,
        num: int,
        similarity: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Windows:
        return _draw_by_weight(1 - statistics.entropy, statistics, num, generator, self.balanced)


class ConfidenceGuide(TwoSidedGuide):
    """Draws where the class is likely, whether or not the network is sure.

    Windows are drawn without replacement with probability proportional to max(c, 0.001), c the
    mean confidence; a drawn window is a positive with probability c, else a negative. "Class
    confidence" of the poster's second ablation, with the two-sided rule of ``EntropyGuide``
    (ours). Degenerate maps behave as there; an absent class is drawn uniformly, as negatives.
    """

    @torch.no_grad()
    def __call__(
        self,
        statistics: WindowStatistics,
        num: int,
        similarity: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Windows:
        return _draw_by_weight(statistics.confidence, statistics, num, generator, self.balanced)


class LowestEntropyGuide:
    """Takes the ``num`` windows of lowest entropy that the class covers by at least a quarter.

    All are positives; negatives of a class are the positives of the others
    (``ClassMemory.of_other_classes``). Ties, as all windows of a labelled image are, are broken
    at random. Second reading of poster step 3 (ours).

    Degenerate maps: windows that do not qualify are invalid, hence all of an absent class, and of
    a class of one voxel unless the window has at most four. With confidence 1/2 everywhere all
    qualify and tie.
    """

    needs_similarity = False
    two_sided = False

    @torch.no_grad()
    def __call__(
        self,
        statistics: WindowStatistics,
        num: int,
        similarity: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Windows:
        entropy = statistics.entropy
        noise = torch.rand(
            entropy.shape, dtype=entropy.dtype, device=entropy.device, generator=generator
        )
        qualifies = statistics.covered(QUALIFYING_COVERAGE)
        rank = torch.where(qualifies, -entropy - TIE * noise, -torch.inf)
        return _all_positive(rank, statistics, num)


class CosineGuide:
    """Takes the ``num`` windows whose embedding is most similar to the class's mean embedding.

    "Cosine similarity" of the poster's second ablation. All are positives; negatives of a class
    are the positives of the others (``ClassMemory.of_other_classes``), the details are ours.
    ``every_window`` gives the windows to embed, ``cosine_similarity`` compares them. Ties, as all
    windows are before a class has a mean, are broken at random.

    Degenerate maps: entropy and confidence play no part; windows without a voxel of the class are
    invalid, hence all of an absent class.
    """

    needs_similarity = True
    two_sided = False

    @torch.no_grad()
    def __call__(
        self,
        statistics: WindowStatistics,
        num: int,
        similarity: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Windows:
        shape = tuple(statistics.entropy.shape)
        if similarity is None or tuple(similarity.shape) != shape:
            seen = "none" if similarity is None else f"shape {tuple(similarity.shape)}"
            raise ValueError(
                f"CosineGuide needs similarity of shape (B, K, W) = {shape}, got {seen}. Embed "
                f"every_window(statistics) and use cosine_similarity()."
            )
        noise = torch.rand(
            shape, dtype=similarity.dtype, device=similarity.device, generator=generator
        )
        rank = torch.where(statistics.covered(), similarity + TIE * noise, -torch.inf)
        return _all_positive(rank, statistics, num)


def cosine_similarity(embeddings: Tensor, means: Tensor) -> Tensor:
    """Cosine of each window's embedding with the mean embedding of its class, in float32.

    Args:
        embeddings: (B, K, N, E).
        means: (K, E), as ``ClassMemory.mean``; zero where a class has none.

    Returns:
        (B, K, N), zero where the mean is zero.
    """
    return F.cosine_similarity(embeddings.float(), means.float()[:, None], dim=-1)


GUIDES: dict[str, type[Guide]] = {
    "entropy": EntropyGuide,
    "lowest_entropy": LowestEntropyGuide,
    "confidence": ConfidenceGuide,
    "cosine": CosineGuide,
}


@torch.no_grad()
def draw_classes(
    confidence: Tensor, number: int | None, generator: torch.Generator | None = None
) -> Tensor | None:
    """The classes of a step, so that it costs no more with a hundred than with ``number``: those
    that some patch shows, drawn where there are more. Source: ours.

    Shapes do not depend on data: where fewer are shown, others fill up. Under distributed training
    all ranks draw alike, from what any of their patches shows.

    Args:
        confidence: (B, K, *spatial), class probabilities.
        number: of classes; None for all.
        generator: source of randomness, on the device of the maps.

    Returns:
        (number,) long, ascending; None where that is all of them.
    """
    if number is None or number >= confidence.shape[1]:
        return None
    shown = confidence.amax((0, *range(2, confidence.ndim))) >= MASK_THRESHOLD
    noise = torch.rand(len(shown), device=shown.device, generator=generator)
    if dist.is_available() and dist.is_initialized():
        # the noise of the first rank, and what is shown to any
        both = torch.stack((noise * (dist.get_rank() == 0), shown.to(noise)))
        dist.all_reduce(both, dist.ReduceOp.MAX)
        noise, shown = both
    return (noise + shown).topk(number).indices.sort().values


def of_classes(classes: Tensor | None, every_class: Tensor, axis: int = 1) -> Tensor:
    """What belongs to drawn classes, of confidence maps (B, K, *spatial) or of anything else with
    classes along an axis; all of it for None."""
    return every_class if classes is None else every_class.index_select(axis, classes)


def _draw_by_weight(
    weight: Tensor,
    statistics: WindowStatistics,
    num: int,
    generator: torch.Generator | None,
    balanced: bool,
) -> Windows:
    """Draws in proportion to ``weight`` (B, K, W) without replacement, sides by confidence."""
    weight, confidence = weight.clamp(min=SMALLEST_WEIGHT), statistics.confidence
    if not balanced:
        index, drawn = _draw(weight, num, generator)
        of_drawn = confidence.gather(-1, index)
        coin = torch.rand(
            of_drawn.shape, dtype=of_drawn.dtype, device=of_drawn.device, generator=generator
        )
        return _windows(statistics, index, coin < of_drawn, drawn)
    sides = [_draw(weight * confidence, (num + 1) // 2, generator)]
    if num > 1:
        sides.append(_draw(weight * (1 - confidence).clamp(min=0), num // 2, generator))
    index, drawn = (torch.cat(of_sides, -1) for of_sides in zip(*sides, strict=True))
    positive = torch.arange(num, device=index.device) < (num + 1) // 2
    return _windows(statistics, index, positive.expand_as(drawn), drawn)


def _draw(weight: Tensor, num: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """The largest of weight / exponential noise are a draw in proportion to the weight, without
    replacement and never of weight 0. ``torch.multinomial`` does the same, but checks its input
    on the host first and so waits for the GPU."""
    noise = torch.empty_like(weight).exponential_(generator=generator)
    return _largest(weight.log() - noise.log(), num)


def _all_positive(rank: Tensor, statistics: WindowStatistics, num: int) -> Windows:
    index, chosen = _largest(rank, num)
    return _windows(statistics, index, torch.ones_like(chosen), chosen)


def _largest(rank: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Indices of the ``num`` largest of (B, K, W), and which of them count.

    Ranks of minus infinity or NaN do not count; neither does what fills up (B, K, num) where
    there are fewer than ``num`` candidates.
    """
    if num < 1:
        raise ValueError(f"num must be at least 1 window for each image and class, got {num}.")
    rank = torch.where(rank.isnan(), -torch.inf, rank)
    missing = max(0, num - rank.shape[-1])
    values, index = rank.topk(num - missing, dim=-1)
    return F.pad(index, (0, missing)), F.pad(values > -torch.inf, (0, missing))


def _windows(
    statistics: WindowStatistics, index: Tensor, positive: Tensor, chosen: Tensor
) -> Windows:
    embeddable = torch.where(
        positive,
        statistics.covered().gather(-1, index),
        statistics.uncovered().gather(-1, index),
    )
    return Windows(statistics.start[index], positive, chosen & embeddable, statistics.size)
