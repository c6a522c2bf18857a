"""Pieces of a step that never need a tensor's values on the host."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from bare import bare_trainer, small_unet
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunetv2_plgcl.semisupervised.losses import loss_with_ignore_label, weighted_loss
from nnunetv2_plgcl.semisupervised.mixing import BoxMix, CutMix, Mixup
from nnunetv2_plgcl.semisupervised.perturbation import FeatureDropout
from nnunetv2_plgcl.semisupervised.spatial import SpatialView
from nnunetv2_plgcl.semisupervised.targets import (
    at_every_resolution,
    class_probabilities,
    confidence,
    hard_target,
    ignore_where,
    join_targets,
)


def step_of(exclusive: bool, axes: int, device: str) -> Callable[[], Tensor]:
    """A step with all pieces; what is drawn or built on the host is drawn and built before."""
    trainer = bare_trainer(exclusive, axes=axes)
    heads = trainer.label_manager.num_segmentation_heads
    scales = trainer._get_deep_supervision_scales()
    turn = SpatialView(torch.empty(4, 1, *[16] * axes), [1.0] * axes, range(axes))
    dropout = FeatureDropout(small_unet(axes))
    weigh, loss = weighted_loss(trainer), loss_with_ignore_label(trainer)

    def step() -> Tensor:
        images = torch.randn(4, 1, *[16] * axes, device=device)
        maps = class_probabilities(torch.randn(4, heads, *[16] * axes, device=device), exclusive)
        for mix in (CutMix(images, 0.5), Mixup(images, 0.2)):
            images, maps = mix(images), mix(maps)
        target = hard_target(maps, exclusive, 0.6)
        target = ignore_where(target, confidence(maps, exclusive) < 0.7, heads, exclusive)
        box = BoxMix(images)
        mixed = box(turn(target), turn.undo(target))
        targets = at_every_resolution(mixed, scales)
        targets = join_targets(targets, targets)
        weights = [torch.ones_like(t[:, :1], dtype=torch.float32) for t in targets]
        dropout.masks(images), dropout.complementary_masks(images)
        logits = [
            torch.randn(8, heads, *t.shape[2:], device=device, requires_grad=True) for t in targets
        ]
        total: Tensor = weigh(logits, targets, weights)
        if not exclusive:  # of labels, nnU-Net asks on the host whether there is anything to learn
            total = total + loss(logits, targets)
        total.backward()
        return total

    return step


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("exclusive", [True, False])
def test_pieces_run_on_tensors_without_values(exclusive, axes):
    step = step_of(exclusive, axes, "cpu")
    with FakeTensorMode():
        assert step().shape == ()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("exclusive", [True, False])
def test_pieces_do_not_synchronise_with_the_gpu(exclusive):
    step = step_of(exclusive, 2, "cuda")
    step()  # whatever is set up once
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode(before)
