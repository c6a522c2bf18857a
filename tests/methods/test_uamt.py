"""UA-MT: where the teacher is unsure the student learns nothing."""

import math

import pytest
import torch
from training import make_trainer, tiny

from nnunetv2_plgcl.semisupervised.losses import squared_consistency
from nnunetv2_plgcl.semisupervised.targets import normalised_entropy
from nnunetv2_plgcl.trainers.methods.nnUNetTrainerUAMT import nnUNetTrainerUAMT


def test_consistency_of_sure_voxels_against_loops():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(2, 4, 5, 6, generator=generator).mul(2).softmax(1) for _ in range(2)
    )
    threshold, total, number = 0.6, 0.0, 0
    for b in range(2):
        for y in range(5):
            for x in range(6):
                p = teacher[b, :, y, x].tolist()
                if -sum(v * math.log(v) for v in p) < threshold * math.log(4):
                    number += 4
                    total += sum(
                        (v - s) ** 2 for v, s in zip(p, student[b, :, y, x].tolist(), strict=True)
                    )
    sure = normalised_entropy(teacher, True) < threshold
    assert 0 < number < 240
    assert squared_consistency(student, teacher, sure).item() == pytest.approx(total / number)


def test_entropy_of_regions_against_loops():
    p = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    entropy = normalised_entropy(p, False)
    for b in range(2):
        for y in range(4):
            for x in range(4):
                of_regions = [
                    -v * math.log2(v) - (1 - v) * math.log2(1 - v) for v in p[b, :, y, x].tolist()
                ]
                assert entropy[b, 0, y, x].item() == pytest.approx(sum(of_regions) / 3, rel=1e-5)


@pytest.mark.parametrize("where", [None, torch.zeros(0, 1, 3, 3, dtype=torch.bool)])
def test_no_voxel_costs_nothing_and_keeps_the_graph(where):
    logits = torch.randn(0, 2, 3, 3, requires_grad=True)
    loss = squared_consistency(logits, torch.zeros(0, 2, 3, 3), where)
    loss.backward()
    assert loss.item() == 0


def test_allowed_entropy_grows_to_the_highest(prepared):
    trainer = make_trainer(tiny(nnUNetTrainerUAMT, 4, 2), prepared)
    for epoch, iteration, progress in ((0, 0, 0.0), (2, 1, 0.625), (4, 0, 1.0)):
        trainer.current_epoch, trainer.iteration_in_epoch = epoch, iteration
        expected = 0.75 + 0.25 * math.exp(-5 * (1 - progress) ** 2)
        assert trainer.allowed_entropy == pytest.approx(expected)


def test_mean_of_copies_is_the_mean_of_the_turned_predictions(prepared):
    """A teacher that commutes with turns and hears no noise predicts the same for every copy."""
    trainer = make_trainer(tiny(nnUNetTrainerUAMT), prepared, {"noise": 0.0})
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = (0, 1)  # the loaders find them out
    trainer.pseudo_label = lambda patches: torch.cat((patches, 1 - patches), 1)
    weak = torch.rand(3, 1, 48, 48)
    torch.testing.assert_close(trainer.mean_of_copies(weak), torch.cat((weak, 1 - weak), 1))
