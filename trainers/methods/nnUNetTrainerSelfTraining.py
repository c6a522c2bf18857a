from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nnunetv2_plgcl.semisupervised.hard_labels import nnUNetTrainerHardPseudoLabels
from nnunetv2_plgcl.semisupervised.settings import StrongViewSettings
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
    intensities where the public code's both have nnU-Net's own, and flips from the first copy on
    where it begins them late; one decision at full resolution serves all resolutions, where it
    decides at each; the planned batch is divided, where it adds an unlabelled one; nothing is
    selected on validation.
    """

    settings_class = SelfTrainingSettings
    config: SelfTrainingSettings

    def initialize(self) -> None:
        super().initialize()
        self.strong_views = int(self.config.rotated_view == "strong")

    def train_step(self, batch: dict) -> dict:
        images, target = self.labelled_batch(batch)
        unlabelled = self.unlabelled_batch(like=images)
        weak = unlabelled.weak
        view = unlabelled.strong[0] if self.strong_views else weak
        turn = self.spatial_view(weak)
        with self.autocast():
            # 1. labels of the weak view
            pseudo = self.hard_target(self.decide(weak), self.config.confidence_threshold)
            # 2. the rotated copy learns the rotated labels, together with the labelled patches
            logits = self.student_logits(torch.cat((images, turn(view))))
            loss = self.pooled_loss(logits, target, self.at_every_resolution(turn(pseudo)))
        self.optimise(loss)
        self.update_teacher()
        return self.finish_step(pseudo_label=pseudo, loss=loss, loss_supervised=loss)

    def decide(self, weak: Tensor) -> Tensor:
        """Probabilities (B, K, *spatial) of the weak view (B, C, *spatial), without gradient."""
        of_teacher = self.config.label_source == "teacher"
        return self.pseudo_label(weak) if of_teacher else self.own_prediction(weak)
