"""Uncertainty-rectified pyramid consistency, against loops over voxels."""

import math

import pytest
import torch

from nnunetv2_plgcl.trainers.methods.nnUNetTrainerURPC import pyramid_consistency


def softmax(values):
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


@pytest.mark.parametrize("exclusive", [True, False])
def test_against_loops(exclusive):
    generator = torch.Generator().manual_seed(0)
    logits = [2 * torch.randn(2, 3, edge, edge, generator=generator) for edge in (8, 4, 2)]
    expected = 0.0
    for scale in logits:
        squared, weights, divergences = [], [], []
        for b in range(2):
            for y in range(8):
                for x in range(8):

                    def at(maps, b=b, y=y, x=x):
                        shrink = 8 // maps.shape[-1]
                        return maps[b, :, y // shrink, x // shrink].tolist()

                    # pairs of a region and the rest, or all classes
                    groups = [slice(0, 3)] if exclusive else [slice(k, k + 1) for k in range(3)]
                    for group in groups:
                        values = [at(maps)[group] for maps in logits]
                        each = [softmax(v if exclusive else [*v, 0.0]) for v in values]
                        mean = [sum(p) / len(logits) for p in zip(*each, strict=True)]
                        one = softmax(at(scale)[group] + ([] if exclusive else [0.0]))
                        pairs = list(zip(mean, one, strict=True))
                        divergence = sum(m * math.log(m / p) for m, p in pairs)
                        weight = math.exp(-divergence)
                        divergences.append(divergence)
                        weights.append(weight)
                        squared += [(m - p) ** 2 * weight for m, p in pairs]
        mean_weight = sum(weights) / len(weights)
        rectified = sum(squared) / len(squared) / mean_weight
        expected += (rectified + sum(divergences) / len(divergences)) / len(logits)
    assert pyramid_consistency(logits, exclusive).item() == pytest.approx(expected, rel=1e-5)


def test_outputs_that_agree_cost_nothing():
    logits = torch.randn(1, 3, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert pyramid_consistency([logits, logits[..., ::2, ::2]], True).item() == pytest.approx(
        0, abs=1e-6
    )


def test_extreme_logits_stay_finite():
    logits = [torch.full((1, 2, 4, 4), v, requires_grad=True) for v in (-80.0, 80.0)]
    for exclusive in (True, False):
        loss = pyramid_consistency([logits[0], logits[1].flip(1)], exclusive)
        gradients = torch.autograd.grad(loss, logits, allow_unused=True)
        assert all(torch.isfinite(g).all() for g in gradients if g is not None)
