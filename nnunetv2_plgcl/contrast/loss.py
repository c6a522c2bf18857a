"""InfoNCE in expectation over positives and negatives: sampled, or in closed form.

Both losses compute in float32 under autocast too (float64 stays): at temperature 0.2 exponents
reach tens, which half precision cannot hold. Nothing is exponentiated outside a log-sum-exp.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sampled_info_nce(
    anchors: Tensor,
    anchor_mask: Tensor,
    positives: Tensor,
    positive_mask: Tensor,
    negatives: Tensor,
    negative_mask: Tensor,
    temperature: float,
    negative_weight: Tensor | None = None,
    most_anchors: int | None = None,
) -> Tensor:
    """InfoNCE against explicit positives and negatives (poster step 3).

    For an anchor f of class k, the mean over the positives p of class k of
    -log[exp(f.p/t) / (exp(f.p/t) + sum over the negatives q of class k of exp(f.q/t))],
    averaged over the anchors.

    Args:
        anchors: (B, K, N, E), L2-normalised. Masked ones may hold anything, even NaN.
        anchor_mask: (B, K, N) bool, the anchors that count.
        positives: (K, P, E), L2-normalised; masked ones must be finite.
        positive_mask: (K, P) bool.
        negatives: (K, Q, E), likewise, the negatives of each class.
        negative_mask: (K, Q) bool.
        temperature: t, above 0; 0.2 in the authors' warm-up.
        negative_weight: (K, Q), how many negatives each stands for, above 0 where it is not
            masked: in a draw from a memory, an unbiased estimate of the sum over all of them.
        most_anchors: no class has more anchors that count; saves work on the others.

    Returns:
        Scalar. Anchors of a class without positives or without negatives are left out; where
        none is left, exactly zero with zero gradient, still connected to the anchors.

    Raises:
        ValueError: a temperature that is not above 0.
    """
    _require_positive("temperature", temperature)
    with torch.autocast(anchors.device.type, enabled=False):
        f, mask = _by_class(anchors, anchor_mask) / temperature, _flat_mask(anchor_mask)
        counting = _first_true(mask, most_anchors)
        f = f.gather(1, counting[..., None].expand(-1, -1, f.shape[-1]))
        to_positive = f @ positives.to(f.dtype).mT
        to_negative = f @ negatives.to(f.dtype).mT
        if negative_weight is not None:
            to_negative = to_negative + negative_weight.to(f.dtype).log()[:, None]
        # The dtype's minimum, not -inf: a row without negatives would make NaN on the way back.
        lowest = torch.finfo(f.dtype).min
        negative = to_negative.masked_fill(~negative_mask[:, None], lowest).logsumexp(-1, True)
        # -log[e^p / (e^p + e^n)] = -log sigmoid(p - n)
        share = positive_mask.to(f.dtype) / positive_mask.sum(-1, keepdim=True).clamp(min=1)
        pairs = F.logsigmoid(to_positive - negative)
        each = -(pairs @ share[..., None]).squeeze(-1)
        each = torch.zeros_like(mask, dtype=each.dtype).scatter(1, counting, each)
        usable = positive_mask.any(-1) & negative_mask.any(-1)
        return _mean(each, mask & usable[:, None])


def closed_form_info_nce(
    anchors: Tensor,
    anchor_mask: Tensor,
    mean: Tensor,
    covariance: Tensor,
    present: Tensor,
    temperature: float,
    covariance_scale: float,
    num_negatives: float,
) -> Tensor:
    """Upper bound of the expected InfoNCE for Gaussian positives and negatives (poster: E_J).

    For an anchor f of class k, with s_j = f.mean_j/t + scale * f'cov_j f/(2 t^2),
    -f.mean_k/t + log[exp(s_k) + (num_negatives / J) * sum over the J other classes of exp(s_j)],
    averaged over the anchors. The bound is Jensen's inequality with the moment generating
    function of a Gaussian, and holds for ``covariance_scale`` = 1. Source: joint contrastive
    learning, as in the authors' code; counting present classes only is ours.

    Args:
        anchors: (B, K, N, E), L2-normalised. Masked ones may hold anything, even NaN.
        anchor_mask: (B, K, N) bool, the anchors that count.
        mean: (K, E) mean embedding of each class.
        covariance: (K, E, E).
        present: (K,) bool, the classes whose moments are known.
        temperature: t, above 0.
        covariance_scale: lambda, at least 0; the authors' code has 4.
        num_negatives: psi, above 0, number of negatives that the other classes stand for.

    Returns:
        Scalar. Anchors of a class that is not present, or is alone, are left out; where none is
        left, exactly zero with zero gradient, still connected to the anchors.

    Raises:
        ValueError: a number outside its range.
    """
    _require_positive("temperature", temperature)
    _require_positive("num_negatives", num_negatives)
    if not covariance_scale >= 0:
        raise ValueError(f"covariance_scale must be at least 0, got {covariance_scale}.")
    with torch.autocast(anchors.device.type, enabled=False):
        f = _by_class(anchors, anchor_mask)
        mean, covariance = mean.to(f.dtype), covariance.to(f.dtype)
        linear = f @ mean.mT / temperature
        variance = torch.einsum("kae,jef,kaf->kaj", f, covariance, f)
        logits = linear + covariance_scale / (2 * temperature**2) * variance

        own = torch.eye(len(mean), dtype=torch.bool, device=f.device)
        others = present & ~own
        number = others.sum(-1)
        weight = math.log(num_negatives) - number.clamp(min=1).to(f.dtype).log()
        logits = torch.where(own[:, None], logits, logits + weight[:, None, None])
        lowest = torch.finfo(f.dtype).min
        logits = logits.masked_fill(~(own | others)[:, None], lowest)
        positive = linear.diagonal(dim1=0, dim2=2).mT
        usable = present & (number > 0)
        return _mean(logits.logsumexp(-1) - positive, _flat_mask(anchor_mask) & usable[:, None])


def _by_class(anchors: Tensor, mask: Tensor) -> Tensor:
    """(B, K, N, E) to (K, B * N, E), at least float32, zero where masked."""
    kept = torch.where(mask[..., None], anchors, 0)
    dtype = torch.promote_types(anchors.dtype, torch.float32)
    return kept.transpose(0, 1).flatten(1, 2).to(dtype)


def _flat_mask(mask: Tensor) -> Tensor:
    return mask.transpose(0, 1).flatten(1)


def _first_true(mask: Tensor, number: int | None) -> Tensor:
    """(K, M) bool to (K, number) indices, those of true elements first; all M for None."""
    return mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :number]


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}.")
