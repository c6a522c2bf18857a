"""LCLPL and DTC: what the heads beside the network learn, against loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from bare import bare_trainer

from nnunetv2_plgcl.semisupervised.distance import signed_distances
from nnunetv2_plgcl.trainers.methods.nnUNetTrainerDTC import nnUNetTrainerDTC
from nnunetv2_plgcl.trainers.methods.nnUNetTrainerLCLPL import (
    LCLPLSettings,
    local_contrast,
    nnUNetTrainerLCLPL,
)


def test_local_contrast_against_loops():
    generator = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(2, 3, 4, 5, generator=generator), dim=-1)
    drawn = torch.ones(2, 3, 4, dtype=torch.bool)
    drawn[0, 1] = False
    there = [(b, k) for b in range(2) for k in range(3) if drawn[b, k, 0]]
    mean = {(b, k): F.normalize(embeddings[b, k].mean(0), dim=0) for b, k in there}
    losses = []
    for b, k in there:
        for anchor in embeddings[b, k]:
            to = {key: math.exp(float(anchor @ m) / 0.1) for key, m in mean.items()}
            others = sum(value for (_, j), value in to.items() if j != k)
            own = [value for (_, j), value in to.items() if j == k]
            losses.append(sum(-math.log(v / (v + others)) for v in own) / len(own))
    loss = local_contrast(embeddings, drawn, 0.1)
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_one_class_alone_has_nothing_to_contrast():
    drawn = torch.zeros(2, 3, 4, dtype=torch.bool)
    drawn[:, 1] = True
    embeddings = F.normalize(torch.randn(2, 3, 4, 5), dim=-1)
    assert local_contrast(embeddings, drawn, 0.1).item() == 0


@pytest.mark.parametrize("axes", [2, 3])
def test_voxels_are_drawn_from_their_class_where_it_is_sure(axes):
    trainer = object.__new__(nnUNetTrainerLCLPL)
    trainer.config = LCLPLSettings(voxels_per_class=50, confidence_threshold=0.7)
    generator = torch.Generator().manual_seed(0)
    classes = torch.randn(2, 3, *[6] * axes, generator=generator).mul(3).softmax(1)
    classes[1, 2] = 0.0  # absent
    place = torch.arange(6**axes).float().view(1, 1, *[6] * axes)
    features = torch.cat((place, place + 1000), 1).expand(2, -1, *[6] * axes)
    features, drawn = trainer.draw(features, classes)
    assert features.shape == (2, 3, 50, 2) and drawn.shape == (2, 3, 50)
    assert not drawn[1, 2].any() and drawn.sum() == 5 * 50
    for b in range(2):
        for k in range(3):
            voxels = features[b, k, :, 0].long()
            assert torch.equal(features[b, k, :, 1].long(), voxels + 1000)
            if drawn[b, k, 0]:
                assert (classes[b, k].flatten()[voxels] >= 0.7).all() and len(set(voxels)) > 5


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("ignore", [True, False])
def test_distances_are_learnt_where_there_is_a_label(exclusive, ignore):
    trainer = bare_trainer(exclusive, ignore)
    trainer.__class__ = nnUNetTrainerDTC
    trainer.configuration_manager.configuration["spacing"] = [1.0, 2.0]
    generator = torch.Generator().manual_seed(0)
    if exclusive:
        target = torch.randint(0, 4 if ignore else 3, (2, 1, 8, 8), generator=generator)
        known = target[:, 0] < 3
    else:
        target = (torch.rand(2, 3 if ignore else 2, 8, 8, generator=generator) > 0.5).to(torch.int8)
        known = target[:, 2] == 0 if ignore else torch.ones(2, 8, 8, dtype=torch.bool)
    predicted = torch.rand(2, 2, 8, 8, generator=generator) * 2 - 1
    true = signed_distances(target, 3 if exclusive else 2, exclusive, [1.0, 2.0])
    squared = [
        (float(predicted[b, f, y, x]) - float(true[b, f, y, x])) ** 2
        for b in range(2) for f in range(2) for y in range(8) for x in range(8) if known[b, y, x]
    ]  # fmt: skip
    assert len(squared) < 256 or not ignore
    loss = trainer.distance_loss(predicted, target)
    assert loss.item() == pytest.approx(sum(squared) / len(squared), rel=1e-5)
