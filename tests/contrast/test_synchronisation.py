"""A whole contrastive step never needs a tensor's values on the host."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from nnunetv2_plgcl.contrast.embedding import CropEmbedder, FeatureEmbedder, ProjectionHead
from nnunetv2_plgcl.contrast.guidance import GUIDES, draw_classes, of_classes
from nnunetv2_plgcl.contrast.loss import closed_form_info_nce, sampled_info_nce
from nnunetv2_plgcl.contrast.memory import ClassMemory
from nnunetv2_plgcl.contrast.patches import window_statistics


def _step(guide_name: str, axes: int, device: str) -> Tensor:
    image = torch.randn(2, 1, *[16] * axes, device=device)
    features = torch.randn(2, 4, *[4] * axes, device=device)
    confidence = torch.randn(2, 3, *[16] * axes, device=device).softmax(1)
    classes = draw_classes(confidence, 2)
    confidence = of_classes(classes, confidence)
    statistics = window_statistics(confidence, 6)
    windows = GUIDES[guide_name]()(statistics, 4, similarity=statistics.confidence)
    windows.count()
    with torch.device(device):
        head, memory = ProjectionHead(4, 8), ClassMemory(3, 64, 8)
    fill = torch.ones(4, 1, *[1] * axes, device=device)

    def encoder(crops: Tensor) -> list[Tensor]:
        return [crops * fill.movedim(0, 1)]

    total = torch.zeros((), device=device)
    for embedder in (FeatureEmbedder(head), CropEmbedder(encoder, head)):
        anchors = embedder(image, [features], confidence, windows)
        memory.enqueue(anchors, windows.valid, classes)
        valid, filled = windows.valid & windows.positive, of_classes(classes, memory.filled(), 0)
        for number in (None, 16):
            positives = memory.recall(number, classes=classes)
            negatives = positives.of_other_classes()
            total = total + sampled_info_nce(
                anchors, valid, positives.entries.clone(), filled[:, :number],
                negatives.entries.clone(), negatives.filled, 0.2, negatives.weight, 6,
            )  # fmt: skip
        total = total + closed_form_info_nce(
            anchors,
            valid,
            *(of_classes(classes, moment, 0) for moment in memory.moments()),
            filled.any(1),
            0.2,
            4.0,
            8.0,
        )
    total.backward()
    return total


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("guide", GUIDES)
def test_a_step_runs_on_tensors_without_values(guide, axes):
    with FakeTensorMode():
        assert _step(guide, axes, "cpu").shape == ()


def test_tensors_without_values_would_expose_a_read_on_the_host():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.ones(2).sum().item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("guide", GUIDES)
def test_a_step_does_not_synchronise_with_the_gpu(guide):
    _step(guide, 2, "cuda")  # whatever is set up once
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _step(guide, 2, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode(before)
