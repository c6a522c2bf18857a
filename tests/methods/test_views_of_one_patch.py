"""ICT and TCSM: the target fits the image that the student saw, whatever was done to it."""

import pytest
import torch
from training import make_trainer, tiny

from nnunetv2_plgcl.semisupervised.step import UnlabelledBatch
from nnunetv2_plgcl.trainers.methods.nnUNetTrainerICT import nnUNetTrainerICT
from nnunetv2_plgcl.trainers.methods.nnUNetTrainerTCSM import nnUNetTrainerTCSM


def consistency(trainer_class, prepared, student, teacher):
    """What a step logs when student and teacher compute these functions of a patch."""
    trainer = make_trainer(tiny(trainer_class, 3, 2), prepared, {"warmup_fraction": 0.0})
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = (0, 1)  # the loaders find them out
    weak = torch.rand(3, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    strong = (weak,) * trainer.strong_views
    trainer.labelled_batch = lambda batch: (torch.zeros(2, 1, 48, 48), [])
    trainer.unlabelled_batch = lambda like: UnlabelledBatch(weak, strong, [])
    trainer.pseudo_label = teacher
    trainer.student_logits = lambda images: [student(images)]
    trainer.supervised_loss = lambda logits, target: torch.zeros(())
    trainer.optimise = trainer.update_teacher = lambda *_: None
    trainer.finish_step = lambda **losses: losses
    return trainer.train_step({})["loss_consistency"].item()


def logits(patches):
    """Linear in the patch after the sigmoid, voxel by voxel: blends and turns pass through it."""
    inside = 0.1 + 0.8 * patches
    return torch.cat((inside, 1 - inside), 1).log()


def probabilities(patches):
    return logits(patches).softmax(1)


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerICT, nnUNetTrainerTCSM])
def test_a_student_equal_to_the_teacher_is_consistent(prepared, trainer_class):
    assert consistency(trainer_class, prepared, logits, probabilities) == pytest.approx(0, abs=1e-9)


def test_ict_against_loops(prepared):
    shares = []

    def student(images):
        shares.append(images[2:])
        return torch.zeros(len(images), 2, 48, 48)

    torch.manual_seed(1)
    value = consistency(nnUNetTrainerICT, prepared, student, probabilities)
    weak = torch.rand(3, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    (blended,) = shares
    expected = 0.0
    for b in range(3):
        before = weak[b - 1]
        share = ((blended[b] - weak[b]) / (before - weak[b])).median()
        target = (1 - share) * probabilities(weak)[b] + share * probabilities(weak)[b - 1]
        expected += ((0.5 - target) ** 2).sum().item()
    assert value == pytest.approx(expected / weak.numel() / 2, rel=1e-4)


def test_tcsm_against_the_patch_itself(prepared):
    """The teacher sees a turned copy: one that answers by place, not content, is turned back."""
    seen: list[torch.Tensor] = []
    torch.manual_seed(0)

    def teacher(patches):
        seen.append(patches)
        return probabilities(patches)

    value = consistency(
        nnUNetTrainerTCSM, prepared, lambda x: torch.zeros(len(x), 2, 48, 48), teacher
    )
    weak = torch.rand(3, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(seen[0], weak)
    expected = ((probabilities(weak) - 0.5) ** 2).mean().item()
    assert value == pytest.approx(expected, rel=1e-5)
