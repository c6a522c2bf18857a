from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nnunetv2_plgcl.semisupervised.hard_labels import nnUNetTrainerHardPseudoLabels
from nnunetv2_plgcl.semisupervised.settings import StrongViewSettings
from nnunetv2_plgcl.semisupervised.targets import class_probabilities
from nnunetv2_plgcl.settings import setting


@dataclass(frozen=True)
class SelfTrainingSettings(StrongViewSettings):
    """Whose labels, and of what the student sees rotated copies."""

    published: ClassVar[Mapping[str, Any]] = {
        "label_source": "student",
        "rotated_view": "weak",
        "warmup_fraction": 20 / 300,
        "deployed_weights": "student",
    }

    label_source: str = setting(
        "teacher",
        "whose decisions are the labels [ours; public code takes the student's own]",
        choices=("teacher", "student"),
    )
    rotated_view: str = setting(
        "strong",
        "the view whose rotated copy the student learns from [ours; public code: weak]",
        choices=("weak", "strong"),
    )
    confidence_threshold: float = setting(
        0.0, "voxels of less confidence are ignored [public code has no threshold]", 0, 1
    )


class nnUNetTrainerSelfTraining(nnUNetTrainerHardPseudoLabels):
    """Hard pseudo-labels on rotated copies, as in nnFilterMatch (2025) without its active learning.

    The label of an unlabelled patch turns with the patch, and a network that is not equivariant
    errs differently on the copy, so each copy corrects the others. One call of nnU-Net's loss
    pools the batch Dice of true and pseudo-labels, at full weight from the first iteration of the
    second stage on. Departures: the labels are the EMA teacher's, the copy has the strong view's
    intensities, and the planned batch is divided, where the public code adds an unlabelled one;
    nothing is selected on validation.
    """

    settings_class = SelfTrainingSettings
    config: SelfTrainingSettings

    def train_step(self, batch: dict) -> dict:
        images, target = self.labelled_batch(batch)
        weak, strong = self.unlabelled_views(like=images)
        turn = self.spatial_view(weak)
        with self.autocast():
            # 1. labels of the weak view
            pseudo = self.hard_target(self.decide(weak), self.config.confidence_threshold)
            # 2. the rotated copy learns the rotated labels, together with the labelled patches
            copies = turn(weak if self.config.rotated_view == "weak" else strong)
            logits = self.student_logits(torch.cat((images, copies)))
            loss = self.pooled_loss(logits, target, self.at_every_resolution(turn(pseudo)))
        self.optimise(loss)
        self.update_teacher()
        return self.finish_step(pseudo_label=pseudo, loss=loss, loss_supervised=loss)

    def decide(self, weak: Tensor) -> Tensor:
        """Probabilities (B, K, *spatial) of the weak view (B, C, *spatial), without gradient."""
        if self.config.label_source == "teacher" or len(weak) == 0:
            return self.pseudo_label(weak)
        with torch.no_grad():
            return class_probabilities(self.student_logits(weak)[0], self.exclusive)
